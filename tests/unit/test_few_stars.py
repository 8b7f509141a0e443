"""Ten stars among two hundred transients: the kernel is that of the stars."""

from dataclasses import replace

import numpy as np
import pytest

from core.simulate import PairSettings, simulate_pair
from core.subtraction import run_sfft
from core.subtraction.sfft import SFFTSettings, evaluate_flux_scale, subtract
from core.subtraction.sfft.fit import KernelFit
from core.subtraction.sfft.stamps import informative_stamps
from core.subtraction.verdict import QualityLimits, judge
from tests.prepared_pair import make_pair

TEN = {"n_stars": 10, "star_bright": 13.0, "star_faint": 18.0}
SETTINGS = {"shape": (640, 640), **TEN}


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_the_flux_scale_is_that_of_the_stars(seed):
    truth = simulate_pair(PairSettings(seed=seed, n_transients=80, **SETTINGS))
    _, solution = run_sfft(
        truth.science, truth.template, truth.science_mask != 0, truth.template_mask != 0,
        err=True, template_err=True, image_gain=2.0, template_gain=20.0,
        kernel_shape=None, get_kernel=True,
    )  # fmt: skip
    assert solution.convolved == "template"
    middle = evaluate_flux_scale(solution, 320, 320)
    assert middle == pytest.approx(truth.flux_scale, rel=0.02)


def test_a_seeing_that_was_misjudged_is_found_out():
    """The wrong image would be deconvolved."""
    truth, pair = make_pair(PairSettings(shape=(512, 512), seed=4, star_density=2500))
    swapped = pair.__class__(
        **{**vars(pair), "science_fwhm": pair.template_fwhm, "template_fwhm": pair.science_fwhm}
    )
    difference = subtract(swapped, SFFTSettings())
    assert difference.quality.convolved == "template"
    assert difference.quality.kernel_sum == pytest.approx(truth.flux_scale, rel=0.01)


def test_the_few_clean_stars_of_a_crowded_field_are_not_all_that_tells_the_kernel():
    crowded = PairSettings(
        shape=(400, 420), seed=1, n_stars=3000, galaxy_density=0, science_fwhm=4.5,
        template_fwhm=3.4, n_transients=10, host_fraction=0.0,
    )  # fmt: skip
    truth, pair = make_pair(crowded)
    few = replace(pair.stars, sources=pair.stars.sources.select(np.arange(30)))
    difference = subtract(replace(pair, stars=few))
    assert difference.quality.stars_used > 100
    assert difference.quality.model_error < 0.002
    scale = evaluate_flux_scale(difference.kernel, [60, 360, 200], [60, 340, 200])
    assert scale == pytest.approx(truth.flux_scale, rel=0.004)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_choices_of_stamps_the_one_that_knows_the_sum_better_is_kept(order):
    _, pair = make_pair(PairSettings(shape=(320, 320), seed=2, n_stars=300))
    fwhms = pair.template_fwhm, pair.science_fwhm
    fit = KernelFit(pair.template, pair.science, (13, 13), SFFTSettings(), *fwhms, threads=1)
    whole = fit.choose_stamps(pair)[0]
    faint = replace(
        whole, stamps=whole.stamps.select(np.arange(len(whole.stamps) - 12, len(whole.stamps)))
    )
    alone = fit.run([whole], "template")
    assert fit.run([faint], "template").kernel.sum() != alone.kernel.sum()
    both = fit.run([whole, faint][::order], "template")
    np.testing.assert_array_equal(both.kernel, alone.kernel)
    assert len(fit.fitted) == alone.stamps_used


def test_blocks_that_share_a_star_are_one_stamp():
    frame = np.zeros((120, 120), np.float32)
    frame[59:62, 59:62] = 1e4  # where four blocks of 15 pixels meet
    stamps = informative_stamps(
        frame, np.ones_like(frame), np.ones(frame.shape, bool), 7, 5, limit=50
    )
    assert len(stamps) == 1
    assert (abs(stamps.x[0] - 60), abs(stamps.y[0] - 60)) <= (1, 1)


@pytest.mark.parametrize("seed", [2, 4])
def test_ten_stars_are_enough_for_the_pipeline(seed):
    truth, pair = make_pair(PairSettings(shape=(1024, 1024), seed=seed, **TEN))
    quality = subtract(pair).quality
    assert judge(quality, QualityLimits()) == []
    assert quality.kernel_sum == pytest.approx(truth.flux_scale, rel=0.03)


def test_a_flux_scale_that_is_hardly_known_is_not_trusted():
    faint = PairSettings(shape=(1024, 1024), seed=4, n_stars=10)
    _, pair = make_pair(faint)
    problems = judge(subtract(pair).quality, QualityLimits())
    assert any("of the flux" in problem for problem in problems)
