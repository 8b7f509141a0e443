"""`run_sfft`: loose arrays in, the documented planes out."""

import inspect
import logging

import numpy as np
import pytest
from astropy.table import Table

from core.errors import SubtractionFailed
from core.simulate import PairSettings, simulate_pair
from core.subtraction.run_sfft import run_sfft
from core.subtraction.sfft import evaluate_kernel_at

SETTINGS = PairSettings(
    shape=(384, 400), seed=21, n_transients=4, snr_range=(60, 90), host_fraction=0.0,
    star_density=2500, science_fwhm=3.2, template_fwhm=2.8,
)  # fmt: skip


@pytest.fixture(scope="module")
def truth():
    return simulate_pair(SETTINGS)


def planes_of(truth, **options):
    """Run with masks, gains and noise maps, but for what the test changes."""
    words = {
        "mask": truth.science_mask != 0,
        "template_mask": truth.template_mask != 0,
        "err": np.sqrt(truth.science_variance),
        "template_err": np.sqrt(truth.template_variance),
        "image_gain": SETTINGS.gain,
        "template_gain": SETTINGS.gain * SETTINGS.template_depth,
    }
    return run_sfft(truth.science, truth.template, **(words | options))


@pytest.fixture(scope="module")
def everything(truth):
    return planes_of(truth, get_convolved=True, get_noise=True, get_scaled=True, get_kernel=True)


def near_transients(truth, radius=10):
    y, x = np.mgrid[: SETTINGS.shape[0], : SETTINGS.shape[1]]
    near = np.zeros(SETTINGS.shape, bool)
    for row in truth.transients:
        near |= np.hypot(x - row["x"], y - row["y"]) < radius
    return near


def test_signature_is_the_documented_one():
    """Names, order and defaults by which users of the function call it."""
    parameters = inspect.signature(run_sfft).parameters
    assert list(parameters)[:6] == [
        "image", "template", "mask", "template_mask", "err", "template_err",
    ]  # fmt: skip
    defaults = {name: p.default for name, p in parameters.items()}
    assert defaults["kernel_shape"] == (7, 7)
    assert (defaults["kernel_poly_order"], defaults["bg_poly_order"]) == (2, 2)
    assert (defaults["flux_poly_order"], defaults["flux_penalty"]) == (1, 1000.0)
    assert (defaults["sigma_clip"], defaults["max_iter"], defaults["ridge"]) == (3.0, 5, 1e-6)
    assert not any(defaults[f"get_{what}"] for what in ("convolved", "scaled", "noise", "kernel"))


def test_planes_come_in_the_documented_order(truth, everything):
    difference, convolved, noise, scaled, kernel = everything
    for plane in (difference, convolved, noise, scaled):
        assert plane.shape == SETTINGS.shape
        assert plane.dtype == np.float32
        assert np.isfinite(plane).all()
    assert (noise > 0).all()
    np.testing.assert_allclose(scaled, difference / noise, rtol=1e-5, atol=1e-5)
    good = (truth.science_mask == 0) & (truth.template_mask == 0)
    np.testing.assert_allclose((truth.science - convolved)[good], difference[good], atol=0.05)
    centre = evaluate_kernel_at(kernel, 200, 192)
    assert centre.shape == (7, 7)
    assert centre.sum() == pytest.approx(truth.flux_scale, rel=0.01)


def test_one_plane_comes_alone_and_some_in_a_list(truth, everything):
    alone = planes_of(truth)
    np.testing.assert_array_equal(alone, everything[0])
    pair = planes_of(truth, get_noise=True)
    assert isinstance(pair, list)
    np.testing.assert_array_equal(pair[1], everything[2])


def test_noise_is_that_of_the_difference(truth, everything):
    difference, _, noise, scaled, _ = everything
    sky = (truth.science_mask == 0) & (truth.template_mask == 0) & ~near_transients(truth)
    sky[:6] = sky[-6:] = sky[:, :6] = sky[:, -6:] = False
    low, middle, high = np.percentile(scaled[sky], [15.8655, 50, 84.1345])
    assert middle == pytest.approx(0, abs=0.03)
    assert 0.5 * (high - low) == pytest.approx(1, abs=0.03)
    assert np.median(np.abs(difference[sky]) / noise[sky]) == pytest.approx(0.6745, abs=0.02)


def test_transients_keep_their_flux(truth, everything):
    difference, _, noise, *_ = everything
    for row in truth.transients:
        y, x = round(row["y"]), round(row["x"])
        box = np.s_[max(0, y - 8) : y + 9, max(0, x - 8) : x + 9]
        error = 1.5 * np.sqrt((noise[box] ** 2).sum())  # correlated by the kernel
        assert abs(difference[box].sum() - row["flux"]) < 4 * error + 0.04 * row["flux"]


def test_arrays_are_taken_as_they_come_and_left_as_they_were(truth, everything):
    science = truth.science.copy()
    science[5:9, 5:9] = np.nan
    before = science.copy()
    template = truth.template.astype(">f8")
    got = run_sfft(
        science, template, truth.science_mask != 0, truth.template_mask != 0,
        np.sqrt(truth.science_variance), np.sqrt(truth.template_variance),
        SETTINGS.gain, SETTINGS.gain * SETTINGS.template_depth,
    )  # fmt: skip
    np.testing.assert_array_equal(science, before)
    np.testing.assert_array_equal(template, truth.template.astype(">f8"))
    assert np.isfinite(got).all()
    inside = np.s_[40:-40, 40:-40]
    assert np.median(np.abs((got - everything[0])[inside])) < 0.1 * np.median(everything[2])


def test_nothing_that_is_handed_in_is_changed(truth):
    arrays = {
        "image": truth.science.copy(),
        "template": truth.template.copy(),
        "mask": truth.science_mask != 0,
        "template_mask": truth.template_mask != 0,
        "err": np.sqrt(truth.science_variance),
        "template_err": np.sqrt(truth.template_variance),
    }
    before = {name: array.copy() for name, array in arrays.items()}
    run_sfft(**arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize("err", [None, False, True])
def test_noise_can_be_built_or_left_out(truth, err):
    _, noise, scaled = planes_of(truth, err=err, template_err=err, get_noise=True, get_scaled=True)
    sky = (truth.science_mask == 0) & (truth.template_mask == 0) & ~near_transients(truth)
    low, high = np.percentile(scaled[sky], [15.8655, 84.1345])
    assert 0.5 * (high - low) == pytest.approx(1, abs=0.08)
    assert (noise > 0).all()
    if err is True:  # with the photons of the sources
        bright = sky & (truth.science_model > 3 * SETTINGS.sky)
        assert np.median(noise[bright]) > 1.3 * np.median(noise)


def test_a_given_list_of_objects_is_fitted_around(truth):
    bright = truth.stars[np.argsort(-truth.stars["flux"])[20:120]]
    table = Table({"x": bright["x"], "y": bright["y"], "fwhm": np.full(len(bright), 3.3)})
    _, kernel = planes_of(truth, obj=table, get_kernel=True)
    assert kernel.kernel.sum(axis=(1, 2))[0] == pytest.approx(truth.flux_scale, rel=0.02)
    assert kernel.stamps_used + kernel.stamps_clipped <= len(table)
    as_dict = planes_of(truth, obj={"x": table["x"], "y": table["y"]}, obj_size=10)
    assert np.isfinite(as_dict).all()


def test_kernel_is_chosen_when_asked(truth):
    _, kernel = planes_of(truth, kernel_shape=None, get_kernel=True)
    assert kernel.kernel.shape[1] >= 11


def test_lines_go_where_they_are_wanted(truth, caplog):
    lines = []
    planes_of(truth, verbose=lines.append)
    assert len(lines) == 1
    assert "SFFT" in lines[0]
    with caplog.at_level(logging.INFO, logger="core"):
        planes_of(truth)
        assert not [line for line in caplog.records if line.levelno == logging.INFO]
        planes_of(truth, verbose=True)
        assert "SFFT" in caplog.text


def test_what_cannot_be_used_is_said():
    square = np.zeros((64, 64))
    with pytest.raises(ValueError, match="differ in shape"):
        run_sfft(square, np.zeros((64, 65)))
    with pytest.raises(ValueError, match="must be a two-dimensional image"):
        run_sfft(np.zeros((3, 64, 64)), square)
    with pytest.raises(ValueError, match="mask of the science image has shape"):
        run_sfft(square, square, mask=np.zeros((3, 3), bool))
    noise = np.random.default_rng(1).normal(0, 1, (64, 64))
    with pytest.raises(ValueError, match="noise map of the template has shape"):
        run_sfft(noise, noise, template_err=np.ones((3, 3)))
    with pytest.raises(SubtractionFailed):
        run_sfft(noise, noise, mask=np.ones((64, 64), bool))


@pytest.mark.parametrize(("shape", "warned"), [((7, 7), True), ((13, 13), False), (None, False)])
def test_a_kernel_that_is_too_small_is_said_to_be(truth, caplog, shape, warned):
    with caplog.at_level(logging.WARNING, logger="core"):
        run_sfft(truth.science, truth.template, err=True, template_err=True, kernel_shape=shape)
    assert ("rings may remain" in caplog.text) == warned
