"""The PSF that is fitted to the pixels of the stars, against the one they were made with."""

import numpy as np
import pytest

from core.psf import PSFModel, fwhm_of, gaussian_psf
from core.stars import SourceList
from core.subtraction.zogy.psf_fit import fit_psf, ring_levels, seeing_of

SHAPE = (420, 460)
NOISE = 10.0


def moffat(fwhm, beta, x, y):
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    return (beta - 1) / (np.pi * alpha**2) * (1 + (x**2 + y**2) / alpha**2) ** -beta


def star_field(fwhm=3.4, beta=3.0, n=40, seed=0, brightest=3e5, widening=0.0):
    """Stars on a grid that is a bit out of order; the seeing grows from left to right."""
    rng = np.random.default_rng(seed)
    ny, nx = SHAPE
    side = int(np.ceil(np.sqrt(n)))
    column, row = np.meshgrid(np.linspace(50, nx - 51, side), np.linspace(50, ny - 51, side))
    x = column.ravel()[:n] + rng.uniform(-8, 8, n)
    y = row.ravel()[:n] + rng.uniform(-8, 8, n)
    flux = brightest * 10 ** -rng.uniform(0, 1.2, n)
    rows, columns = np.mgrid[:ny, :nx]
    model = np.zeros(SHAPE)
    for xi, yi, f in zip(x, y, flux, strict=True):
        local = fwhm * (1 + widening * (xi - 0.5 * (nx - 1)) / (0.5 * nx))
        model += f * moffat(local, beta, columns - xi, rows - yi)
    variance = (NOISE**2 + np.maximum(model, 0) / 2).astype(np.float32)
    data = (model + rng.normal(0, 1, SHAPE) * np.sqrt(variance)).astype(np.float32)
    nothing = np.full(n, np.nan)
    stars = SourceList(x, y, flux, flux / 50, nothing, nothing, nothing, np.ones(n, dtype=bool))
    return data, variance, stars


def truth(psf, fwhm, beta):
    half = psf.size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    return moffat(fwhm, beta, x, y)


@pytest.mark.parametrize("beta", [2.5, 3.5])
def test_shape_and_sum_are_those_of_the_stars(beta):
    data, variance, stars = star_field(beta=beta)
    bad = np.zeros(SHAPE, dtype=bool)
    psf = fit_psf(data, variance, bad, stars, gaussian_psf(3.2, SHAPE))
    wanted = truth(psf, 3.4, beta)
    stamp = psf.at(230, 210)
    assert np.abs(stamp - wanted).max() < 0.01 * wanted.max()
    # a flux is measured with the sum of P²: its error is twice that of the flux
    assert (stamp * wanted).sum() / (wanted**2).sum() == pytest.approx(1.0, abs=0.005)
    alpha2 = 3.4**2 / (4 * (2 ** (1 / beta) - 1))
    outside = (1 + (psf.size // 2 - 0.5) ** 2 / alpha2) ** (1 - beta)  # the stamp is cut round
    assert outside > 0.001
    assert 1 - stamp.sum() == pytest.approx(outside, abs=0.003)
    assert psf.n_stars >= 35
    assert 0 < psf.noise < 0.003  # of its transform; and what fluxes are off by
    assert 0 < psf.flux_error < 0.005


@pytest.mark.parametrize(("n", "brightest"), [(6, 2e4), (40, 3e5)])
def test_the_stated_error_is_that_of_fluxes(n, brightest):
    off, stated = [], []
    for seed in range(6):
        data, variance, stars = star_field(n=n, brightest=brightest, seed=seed, beta=4.5)
        bad = np.zeros(SHAPE, dtype=bool)
        psf = fit_psf(data, variance, bad, stars, gaussian_psf(3.2, SHAPE))
        stated.append(psf.flux_error)
        for x, y in ((120, 110), (230, 210), (340, 310)):
            stamp = psf.at(x, y)
            off.append((stamp * truth(psf, 3.4, 4.5)).sum() / (stamp**2).sum() - 1)
    assert 0.2 < np.sqrt(np.mean(np.square(off)) / np.mean(np.square(stated))) < 1.8


def test_the_sum_is_agreed_upon_with_a_model_that_is_surer():
    data, variance, stars = star_field(n=30)
    bad = np.zeros(SHAPE, dtype=bool)
    start = gaussian_psf(3.4, SHAPE)
    alone = fit_psf(data, variance, bad, stars, start)
    y, x = np.mgrid[-15:16, -15:16]
    fainter = (0.95 * moffat(3.4, 3.0, x, y))[None].astype(np.float32)

    def together(error):
        measured = PSFModel(fainter, 0, SHAPE, 3.4, 30, error)
        return fit_psf(data, variance, bad, stars, measured)

    sure, unsure, alike = (together(alone.flux_error * factor) for factor in (0.1, 10, 1))
    peaks = [psf.at(230, 210).max() / alone.at(230, 210).max() for psf in (sure, unsure, alike)]
    assert peaks == pytest.approx([0.95, 1.0, 0.975], abs=0.006)
    assert sure.flux_error < 0.2 * alone.flux_error
    assert unsure.flux_error == pytest.approx(alone.flux_error, rel=0.15)


def test_the_level_around_a_star_is_not_that_of_its_neighbours():
    rng = np.random.default_rng(1)
    around = rng.normal(3, NOISE, (50, 400)).astype(np.float32)
    around[rng.uniform(size=around.shape) < 0.25] += 20 * NOISE
    around[:, :10] = np.nan
    around[0] = np.nan
    level, count = ring_levels(around, np.full(50, NOISE))
    assert level[1:].mean() == pytest.approx(3, abs=0.3)
    assert np.median(np.nanmedian(around[1:], axis=1)) > 6
    assert (level[0], count[0]) == (0, 0)
    assert np.all((count[1:] > 250) & (count[1:] < 330))


def test_neighbours_and_bad_pixels_do_not_enter():
    data, variance, stars = star_field(n=30)
    spoilt = data.copy()
    bad = np.zeros(SHAPE, dtype=bool)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for number, (x, y) in enumerate(zip(stars.x, stars.y, strict=True)):
        angle = 2.4 * number
        there = columns - x - 9 * np.cos(angle), rows - y - 9 * np.sin(angle)
        spoilt += (0.2 * stars.flux[number] * moffat(3.4, 3.0, *there)).astype(np.float32)
        bad[round(y) - 8, round(x) - 12 : round(x) + 12] = True
    spoilt[bad] = 1e6
    clean = fit_psf(data, variance, np.zeros_like(bad), stars, gaussian_psf(3.2, SHAPE))
    psf = fit_psf(spoilt, variance, bad, stars, gaussian_psf(3.2, SHAPE))
    apart = psf.at(230, 210) - clean.at(230, 210)
    assert np.abs(apart).max() < 0.03 * clean.at(230, 210).max()


def test_the_change_over_the_frame_is_followed():
    data, variance, stars = star_field(n=64, widening=0.1)
    bad = np.zeros(SHAPE, dtype=bool)
    psf = fit_psf(data, variance, bad, stars, gaussian_psf(3.2, SHAPE))
    for x in (80, 230, 380):
        expected = 3.4 * (1 + 0.1 * (x - 229.5) / 230)
        assert fwhm_of(psf.at(x, 210)) == pytest.approx(expected, rel=0.02)


def test_the_brightest_star_is_not_thrown_out_for_what_the_start_lacks():
    data, variance, stars = star_field(n=12, brightest=2e4)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    shape = moffat(3.4, 3.0, columns - stars.x[0], rows - stars.y[0])
    data = data + ((1e6 - stars.flux[0]) * shape).astype(np.float32)
    variance = variance + (5e5 * shape).astype(np.float32)
    start = gaussian_psf(3.0, SHAPE)
    psf = fit_psf(data, variance, np.zeros(SHAPE, dtype=bool), stars, start)
    wanted = truth(psf, 3.4, 3.0)
    assert np.abs(psf.at(stars.x[0], stars.y[0]) - wanted).max() < 0.03 * wanted.max()


def test_without_stars_the_start_is_kept():
    data, variance, stars = star_field(n=30)
    bad = np.zeros(SHAPE, dtype=bool)
    start = gaussian_psf(3.2, SHAPE)
    two = stars.select(np.arange(2))
    assert fit_psf(data, variance, bad, two, start) is start
    assert fit_psf(data, variance, ~bad, stars, start) is start
    assert fit_psf(0 * data, variance, bad, stars, start) is start


def test_seeing_on_stars_of_another_image():
    data, _, stars = star_field(n=30)
    bad = np.zeros(SHAPE, dtype=bool)
    assert seeing_of(data, bad, stars, 8.0) == pytest.approx(3.5, abs=0.25)
    assert seeing_of(data, bad, stars.select(np.arange(2)), 8.0) is None
    assert seeing_of(data, ~bad, stars, 8.0) is None
