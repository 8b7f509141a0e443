"""Mosaics: fluxes, backgrounds, noise and masks across the seam of two images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sep
from astropy.wcs import WCS

from core.errors import NoTemplate, UnusableInput
from core.image import ExposureFacts, Image, MaskBit
from core.templates.mosaic.mosaicking import mosaic
from tests.unit.made_frames import add_gaussians

SHAPE = (512, 1024)
SEAM = 512
OVERLAP = 160
FWHM = 4.0


def grid(shift=(0.0, 0.0), scale=0.25, angle=0.0, crval=(40.0, 20.0)):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = crval
    wcs.wcs.crpix = SHAPE[1] / 2 + shift[0], SHAPE[0] / 2 + shift[1]
    turn = np.radians(angle)
    wcs.wcs.cd = scale / 3600 * np.array(
        [[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    )  # fmt: skip
    return wcs


def sky(rng, flux=2e4):
    """Stars on a lattice that crosses the seam."""
    y, x = np.mgrid[30 : SHAPE[0] - 30 : 50, 30 : SHAPE[1] - 30 : 50]
    x = x.ravel() + rng.uniform(-0.5, 0.5, x.size)
    y = y.ravel() + rng.uniform(-0.5, 0.5, y.size)
    light = np.zeros(SHAPE)
    add_gaussians(light, x, y, flux, FWHM)
    return light, x, y


def half(light, columns, *, rng, zero_point, level, sigma, name, bad=()):
    """One half of the field at its own zero point, background and noise."""
    factor = 10 ** (0.4 * (zero_point - 25))
    pixels = light[:, columns] * factor + level + rng.normal(0, sigma, light[:, columns].shape)
    mask = np.zeros(pixels.shape, np.uint16)
    for y, x, bit in bad:
        mask[y, x - columns.start] = bit
    wcs = grid()[:, columns]
    return Image(
        pixels.astype(np.float32), mask, np.full(pixels.shape, sigma**2, np.float32), wcs,
        facts=ExposureFacts(zero_point=zero_point, band="r"), name=name,
    )  # fmt: skip


def halves(light, rng, **changes):
    left = half(
        light, slice(0, SEAM + OVERLAP // 2),
        rng=rng, zero_point=25.0, level=100.0, sigma=1.0, name="left",
    )  # fmt: skip
    right = {"zero_point": 27.3, "level": -40.0, "sigma": 20.0, "name": "right"} | changes
    return left, half(light, slice(SEAM - OVERLAP // 2, SHAPE[1]), rng=rng, **right)


def fluxes(data, x, y):
    flux, _, _ = sep.sum_circle(np.ascontiguousarray(data), x, y, 3 * FWHM)
    return flux


def test_stars_keep_their_flux_across_the_seam():
    """Noise-free, so that 1e-3 can be seen; the weights know of the noise all the same."""
    rng = np.random.default_rng(1)
    light, x, y = sky(rng)
    whole = mosaic(
        list(halves_without_noise(light, *halves(light, rng))), grid(), SHAPE, zero_point=25.0
    )
    level = np.median(whole.image.data)
    ratio = fluxes(whole.image.data - level, x, y) / fluxes(light.astype(np.float32), x, y)
    assert ratio == pytest.approx(1, abs=1e-3)
    near = np.abs(x - SEAM) < OVERLAP / 2
    assert near.sum() >= 20
    assert ratio[near] == pytest.approx(1, abs=1e-3)
    assert whole.image.facts.zero_point == 25.0


def halves_without_noise(light, left, right):
    for image, columns, level in (
        (left, slice(0, SEAM + OVERLAP // 2), 100.0),
        (right, slice(SEAM - OVERLAP // 2, SHAPE[1]), -40.0),
    ):
        factor = 10 ** (0.4 * (image.facts.zero_point - 25))
        yield replace(image, data=(light[:, columns] * factor + level).astype(np.float32))


def test_background_has_no_step():
    rng = np.random.default_rng(3)
    light, _, _ = sky(rng)
    left, right = halves(light, rng)
    whole = mosaic([left, right], grid(), SHAPE, zero_point=25.0).image
    bare = whole.data - light
    one = np.median(bare[:, : SEAM - OVERLAP // 2])
    two = np.median(bare[:, SEAM + OVERLAP // 2 :])
    middle = np.median(bare[:, SEAM - OVERLAP // 2 : SEAM + OVERLAP // 2])
    quieter = min(1.0, 20 * 10 ** (-0.4 * 2.3))
    assert abs(one - two) < 0.1 * quieter
    assert abs(one - middle) < 0.1 * quieter


@pytest.mark.parametrize("shared", [False, True])
def test_variance_is_right(shared):
    """Of the left, in the overlap, and of the right; independent noise, or the same in both."""
    rng = np.random.default_rng(4)
    light = np.zeros(SHAPE)
    if shared:
        noise = rng.normal(0, 3.0, SHAPE)
        left, right = halves(noise, np.random.default_rng(0), sigma=0.0)
        left = replace(
            left,
            data=noise[:, : left.shape[1]].astype(np.float32),
            variance=np.full(left.shape, 9.0, np.float32),
        )
        factor = 10 ** (0.4 * 2.3)
        right = replace(right, variance=np.full(right.shape, 9 * factor**2, np.float32))
    else:
        left, right = halves(light, rng)
    whole = mosaic([left, right], grid(), SHAPE, zero_point=25.0, shared_noise=shared).image
    for columns in (
        slice(0, SEAM - OVERLAP // 2),
        slice(SEAM - 10, SEAM + 10),
        slice(SEAM + OVERLAP // 2, None),
    ):
        found = np.var(whole.data[:, columns])
        assert found == pytest.approx(np.mean(whole.variance[:, columns]), rel=0.05)


def test_inverse_variance_makes_the_overlap_better_than_either():
    rng = np.random.default_rng(5)
    left, right = halves(np.zeros(SHAPE), rng, zero_point=25.0, level=0.0, sigma=3.0)
    whole = mosaic([left, right], grid(), SHAPE).image
    assert whole.variance[250, SEAM] == pytest.approx(1 / (1 + 1 / 9), rel=0.02)
    assert whole.variance[250, 100] == pytest.approx(1.0, rel=1e-5)


def test_what_differs_is_spread_out():
    """Two levels that are left alone: no pixel of the ramp is more than a few per cent of it."""
    rng = np.random.default_rng(15)
    left, right = halves(np.zeros(SHAPE), rng, zero_point=25.0, level=0.0, sigma=1.0)
    flat = [replace(left, data=0 * left.data), replace(right, data=0 * right.data + 10)]
    row = mosaic(flat, grid(), SHAPE, match_backgrounds=False).image.data[250]
    assert row[0] == 0
    assert row[-1] == pytest.approx(10)
    assert np.abs(np.diff(row)).max() < 0.4


def test_pixel_masked_in_one_comes_from_the_other():
    rng = np.random.default_rng(6)
    light, _, _ = sky(rng)
    left, right = halves(light, rng, zero_point=25.0, level=100.0, sigma=1.0)
    sick = left.data.copy()
    sick[100, SEAM] = sick[101, SEAM] = 1e6
    mask = left.mask.copy()
    mask[100, SEAM] = MaskBit.COSMIC_RAY
    mask[101, SEAM] = MaskBit.SATURATED
    other = right.mask.copy()
    other[101, OVERLAP // 2] = MaskBit.BAD
    whole = mosaic([replace(left, data=sick, mask=mask), replace(right, mask=other)], grid(), SHAPE)
    assert whole.image.mask[100, SEAM] == 0
    assert whole.image.data[100, SEAM] == pytest.approx(right.data[100, OVERLAP // 2], abs=0.5)
    assert whole.origin is not None
    assert whole.sources[whole.origin[100, SEAM]] == "right"
    assert whole.image.mask[101, SEAM] == MaskBit.SATURATED | MaskBit.BAD


def test_origin_tells_where_each_pixel_came_from():
    rng = np.random.default_rng(7)
    left, right = halves(np.zeros(SHAPE), rng, zero_point=25.0, sigma=1.0)
    taller = SHAPE[0] + 40, SHAPE[1]
    whole = mosaic([left, right], grid(), taller)
    assert whole.sources == ("left", "right")
    assert whole.origin is not None
    assert whole.origin.dtype == np.uint8
    assert set(np.unique(whole.origin[: SHAPE[0], : SEAM - OVERLAP // 2])) == {0}
    assert set(np.unique(whole.origin[: SHAPE[0], SEAM + OVERLAP // 2 :])) == {1}
    assert (whole.origin[SHAPE[0] :] == 255).all()
    assert (whole.image.mask[SHAPE[0] :] == MaskBit.NO_DATA).all()
    assert np.isfinite(whole.image.data).all()
    assert (whole.image.variance > 0).all()


def test_one_projection_is_pasted():
    """Bit for bit: no pixel of an image that is alone is touched."""
    rng = np.random.default_rng(8)
    light, _, _ = sky(rng)
    left, right = halves(light, rng, zero_point=25.0, level=100.0, sigma=1.0)
    whole = mosaic([left, right], grid(), SHAPE, match_backgrounds=False).image
    alone = slice(0, SEAM - OVERLAP // 2)
    assert np.array_equal(whole.data[:, alone], left.data[:, alone])


def test_another_projection_is_interpolated():
    """The right half on a grid that is rotated, shifted by half a pixel and 7 % coarser."""
    rng = np.random.default_rng(9)
    light, x, y = sky(rng)
    left, _ = halves_without_noise(light, *halves(light, rng))
    other = grid(shift=(0.5, -0.3), scale=0.2675, angle=3.0, crval=(40.0, 20.0))
    ra, dec = grid().all_pix2world(x, y, 0)
    xs, ys = other.all_world2pix(ra, dec, 0)
    pixels = np.zeros(SHAPE)
    add_gaussians(pixels, xs, ys, 2e4, FWHM * 0.25 / 0.2675)
    tilted = Image(
        pixels.astype(np.float32), np.zeros(SHAPE, np.uint16), np.ones(SHAPE, np.float32), other,
        facts=ExposureFacts(zero_point=25.0), name="tilted",
    )  # fmt: skip
    whole = mosaic([left, tilted], grid(), SHAPE, zero_point=25.0)
    data = whole.image.data - np.median(whole.image.data)
    inside = (x > SEAM + OVERLAP) & (x < SHAPE[1] - 60) & (y > 60) & (y < SHAPE[0] - 60)
    ratio = fluxes(data, x, y)[inside] / fluxes(light.astype(np.float32), x, y)[inside]
    assert ratio == pytest.approx(1, abs=1e-3)


def test_images_that_only_touch_are_levelled_by_their_skies():
    rng = np.random.default_rng(10)
    images = [
        half(np.zeros(SHAPE), columns, rng=rng, zero_point=25.0, level=level, sigma=1.0, name="h")
        for columns, level in ((slice(0, SEAM), 100.0), (slice(SEAM, SHAPE[1]), 40.0))
    ]
    whole = mosaic(images, grid(), SHAPE).image
    step = np.median(whole.data[:, :SEAM]) - np.median(whole.data[:, SEAM:])
    assert abs(step) < 0.1


def test_three_backgrounds_are_made_consistent():
    """The first and the third image share nothing; the second ties them."""
    rng = np.random.default_rng(11)
    spans = (slice(0, 420), slice(340, 760), slice(680, 1024))
    images = [
        half(np.zeros(SHAPE), s, rng=rng, zero_point=25.0, level=level, sigma=1.0, name="h")
        for s, level in zip(spans, (300.0, -200.0, 10.0), strict=True)
    ]
    whole = mosaic(images, grid(), SHAPE).image
    medians = [np.median(whole.data[:, s]) for s in spans]
    assert np.ptp(medians) < 0.1
    # The level of the whole is the mean of what went in.
    sizes = [s.stop - s.start for s in spans]
    mean = np.dot(sizes, (300.0, -200.0, 10.0)) / sum(sizes)
    assert np.mean(medians) == pytest.approx(mean, abs=1)


def test_mixed_zero_points_are_refused():
    rng = np.random.default_rng(12)
    left, right = halves(np.zeros(SHAPE), rng)
    unknown = replace(right, facts=replace(right.facts, zero_point=None))
    with pytest.raises(UnusableInput, match="right: has no zero point"):
        mosaic([left, unknown], grid(), SHAPE)


def test_nothing_on_the_grid_is_no_template():
    rng = np.random.default_rng(13)
    left, _ = halves(np.zeros(SHAPE), rng)
    with pytest.raises(NoTemplate, match="none of 1 images"):
        mosaic([left], grid(crval=(41.0, 20.0)), SHAPE)


@pytest.mark.parametrize("centre", [(0.0, 0.0), (123.0, 90.0), (0.0, -89.999)])
def test_at_the_pole_and_across_zero_hours(centre):
    rng = np.random.default_rng(14)
    light, x, y = sky(rng)
    flat = halves_without_noise(light, *halves(light, rng))
    images = [
        replace(image, wcs=grid(crval=centre)[:, columns])
        for image, columns in zip(
            flat, (slice(0, SEAM + 80), slice(SEAM - 80, SHAPE[1])), strict=True
        )
    ]
    whole = mosaic(images, grid(crval=centre), SHAPE, zero_point=25.0).image
    data = whole.data - np.median(whole.data)
    assert (whole.mask == 0).all()
    assert fluxes(data, x, y) == pytest.approx(fluxes(light.astype(np.float32), x, y), rel=1e-3)
