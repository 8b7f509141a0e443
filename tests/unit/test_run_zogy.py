"""`run_zogy`: the documented names, defaults and order of planes."""

import inspect
import logging

import numpy as np
import pytest
from astropy.table import Table

from core.psf import PSFModel
from core.simulate import PairSettings, simulate_pair
from core.subtraction.difference import Difference
from core.subtraction.run_zogy import run_zogy
from core.subtraction.verdict import QualityLimits, judge

# The published signature: an astronomer's script keeps working when the import line changes.
DOCUMENTED = {
    "mask": None, "template_mask": None, "err": None, "template_err": None, "image_psf": None,
    "template_psf": None, "image_gain": None, "template_gain": None, "image_fwhm": None,
    "template_fwhm": None, "scale": None, "psf_clean": 0, "dx": 0.25, "dy": 0.25, "nx": 1,
    "ny": None, "overlap": 50, "fit_scale": True, "fit_shift": True, "good_regions": None,
    "image_obj": None, "template_obj": None, "get_psf": False, "get_Fpsf": False, "nthreads": 0,
    "verbose": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    settings = PairSettings(
        shape=(360, 460), seed=21, star_density=2500, n_transients=8, snr_range=(25, 50)
    )
    return simulate_pair(settings)


def run(pair, **options):
    return run_zogy(
        pair.science, pair.template, mask=pair.science_mask != 0,
        template_mask=pair.template_mask != 0, image_gain=2.0, template_gain=20.0, nthreads=2,
        **options,
    )  # fmt: skip


def test_signature_is_the_documented_one():
    parameters = inspect.signature(run_zogy).parameters
    given = [
        name
        for name, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert given == ["image", "template", *DOCUMENTED]
    assert {name: parameters[name].default for name in DOCUMENTED} == DOCUMENTED


def test_planes_come_in_the_documented_order(pair):
    d, s_corr, psf, flux, flux_err, noise, scaled, difference = run(
        pair, dx=None, dy=None, nx=2, get_psf=True, get_Fpsf=True, get_noise=True,
        get_scaled=True, get_difference=True,
    )  # fmt: skip
    assert isinstance(difference, Difference)
    for plane in (d, s_corr, flux, flux_err, noise, scaled):
        assert plane.shape == pair.science.shape
        assert plane.dtype == np.float32
        assert np.isfinite(plane).all()
    assert psf.sum() == pytest.approx(1.0, abs=2e-3)
    np.testing.assert_allclose(s_corr, flux / flux_err, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scaled, d / noise, rtol=1e-5, atol=1e-6)
    assert difference.kernel.grid.tiles == (2, 2)
    found = 0
    for row in pair.transients:
        y, x = round(row["y"]), round(row["x"])
        if difference.mask[y, x]:
            continue
        assert s_corr[y - 1 : y + 2, x - 1 : x + 2].max() > 0.6 * row["snr"]
        assert flux[y - 1 : y + 2, x - 1 : x + 2].max() == pytest.approx(row["flux"], rel=0.15)
        found += 1
    assert found >= 5


def test_two_planes_without_options(pair):
    planes = run(pair)
    assert len(planes) == 2
    # the documented 0.25 px of registration noise takes bright stars out of S_corr
    measured = run(pair, dx=None, dy=None)
    assert np.abs(planes[1]).mean() <= np.abs(measured[1]).mean() + 0.01


def test_scale_is_template_over_image(pair):
    fixed = run(pair, scale=1 / 0.7, fit_scale=False, get_difference=True)[-1]
    assert fixed.kernel.matching.flux_scale_at(100, 100) == pytest.approx(0.7)
    fitted = run(pair, fit_scale=False, get_difference=True)[-1]
    assert fitted.kernel.matching.flux_order == 0
    assert fitted.quality.kernel_sum == pytest.approx(pair.flux_scale, rel=0.03)


def test_psfs_may_be_given_as_stamps(pair):
    science_psf = pair.science_psf.at(230, 180, 41)
    template_psf = pair.template_psf.at(230, 180, 41)
    difference = run(pair, image_psf=science_psf, template_psf=template_psf, get_difference=True)[
        -1
    ]
    assert isinstance(difference.psf, PSFModel)
    assert difference.quality.kernel_sum == pytest.approx(pair.flux_scale, rel=0.02)
    with pytest.raises(ValueError, match="odd size"):
        run(pair, image_psf=np.ones((6, 6)))


def test_objects_and_regions_choose_the_stars(pair):
    objects = Table({"x": pair.stars["x"], "y": pair.stars["y"], "flux": pair.stars["flux"]})
    left = np.zeros(pair.science.shape, dtype=bool)
    left[:, :230] = True
    everything = run(pair, image_obj=objects, get_difference=True)[-1].kernel.matching
    some = run(pair, image_obj=objects, good_regions=left, get_difference=True)[-1].kernel.matching
    assert 0 < some.stars_used < everything.stars_used
    with pytest.raises(ValueError, match="good_regions has shape"):
        run(pair, good_regions=left[:5])


def test_options_of_a_psf_program_are_said_to_be_unused(pair, caplog):
    with caplog.at_level(logging.WARNING):
        run(pair, order=3)
    assert "not used: order" in caplog.text


def test_shapes_must_agree(pair):
    with pytest.raises(ValueError, match="differ in shape"):
        run_zogy(pair.science, pair.template[:-4])


FEW = {"shape": (600, 600), "n_transients": 20}


@pytest.mark.parametrize("seed", [1, 2])
def test_twelve_stars_are_enough(seed):
    # among 12 stars and 20 transients, with 90 galaxies around
    pair = simulate_pair(PairSettings(seed=seed, n_stars=12, star_faint=18.0, **FEW))
    difference = run(pair, nx=None, overlap=None, dx=None, dy=None, get_difference=True)[-1]
    assert judge(difference.quality, QualityLimits()) == []
    assert difference.quality.kernel_sum == pytest.approx(pair.flux_scale, rel=0.03)
    assert difference.quality.star_chi2 < 1.3


@pytest.mark.parametrize(("seed", "n_stars"), [(3, 8), (2, 12), (1, 15), (3, 20)])
def test_too_few_stars_for_the_psfs_are_not_called_good(seed, n_stars):
    # most of these stars are too faint to be seen, and galaxies are taken for them
    pair = simulate_pair(PairSettings(seed=seed, n_stars=n_stars, **FEW))
    difference = run(pair, nx=None, overlap=None, dx=None, dy=None, get_difference=True)[-1]
    wrong = abs(difference.quality.kernel_sum / pair.flux_scale - 1)
    assert wrong < 0.05 or judge(difference.quality, QualityLimits())


def test_a_psf_that_no_star_tells_is_not_called_good():
    pair = simulate_pair(PairSettings(shape=(400, 400), seed=4, n_stars=0, n_transients=0))
    difference = run(pair, get_difference=True)[-1]
    assert judge(difference.quality, QualityLimits())
