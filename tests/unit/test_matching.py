"""A template brought onto the science grid: where its stars are afterwards, and how it looks."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.wcs import WCS

from core.errors import NoTemplate
from core.exposure import TemplateFacts
from core.image import ExposureFacts, Image, MaskBit
from core.noise import measure_sky, with_noise
from core.resample import resample
from core.stars import find_sources
from core.templates.matching import cropped, to_science_grid
from core.templates.template import Template
from tests.unit.made_frames import add_gaussians

SHAPE = (400, 420)
FACTS = TemplateFacts("made", "made")


def wcs_of(shape, *, scale=1.0, angle=0.0, centre=(150.0, 30.0)):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = list(centre)
    wcs.wcs.crpix = [0.5 * (shape[1] + 1), 0.5 * (shape[0] + 1)]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    wcs.wcs.cd = scale / 3600 * np.array([[-c, s], [s, c]])
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    return wcs


def star_field(shape, x, y, flux, *, fwhm, seed, sky=300.0, sigma=4.0, wcs=None, **facts):
    light = np.zeros(shape)
    add_gaussians(light, x, y, flux, fwhm)
    data = (light + np.random.default_rng(seed).normal(sky, sigma, shape)).astype(np.float32)
    return Image(
        data, np.zeros(shape, np.uint16), wcs=wcs, facts=ExposureFacts(**facts), name="made.fits"
    )


@pytest.fixture(scope="module")
def stars():
    rng = np.random.default_rng(1)
    return rng.uniform(-40, 460, 160), rng.uniform(-40, 440, 160), rng.uniform(3e3, 6e4, 160)


@pytest.fixture(scope="module")
def science(stars):
    image = star_field(SHAPE, *stars, fwhm=3.6, seed=2, wcs=wcs_of(SHAPE))
    sky = measure_sky(image)
    image = replace(with_noise(image, sky), facts=replace(image.facts, fwhm=3.6))
    return image, find_sources(image.data - sky.level, sky.rms, image.mask)


def on_template(wcs, science_wcs, x, y, error=(0.0, 0.0)):
    """Where science pixels lie on a template whose WCS is off by ``error`` science pixels."""
    world = science_wcs.all_pix2world(np.asarray(x) + error[0], np.asarray(y) + error[1], 0)
    return wcs.all_world2pix(*world, 0)


def peaks_at(image, x, y):
    """Centroids of bright isolated stars of the gridded template."""
    sky = np.full(image.shape, np.sqrt(np.median(image.variance)), np.float32)
    sources = find_sources(image.data, sky, image.mask)
    distance = np.hypot(sources.x[:, None] - x, sources.y[:, None] - y)
    best = distance.argmin(axis=0)
    use = (distance.min(axis=0) < 1.5) & sources.clean[best] & (sources.snr[best] > 100)
    return sources.x[best][use] - x[use], sources.y[best][use] - y[use]


@pytest.mark.parametrize(
    ("scale", "angle", "error"),
    [
        (1.0, 0.0, (0.0, 0.0)),
        (1.0, 3.0, (2.3, -1.7)),
        (0.8, 0.0, (-3.4, 5.2)),
        (1.0, 180.0, (1.5, 0)),
    ],
)
def test_stars_of_the_template_lie_on_those_of_the_exposure(stars, science, scale, angle, error):
    image, sources = science
    shape = (round(520 / scale), round(540 / scale))
    wcs = wcs_of(shape, scale=scale, angle=angle)
    x, y = on_template(wcs, image.wcs, stars[0], stars[1], error)
    native = star_field(shape, x, y, 2 * stars[2], fwhm=2.8 / scale, seed=3, sigma=2.0, wcs=wcs)
    gridded = to_science_grid(Template(native, FACTS), image, sources)
    assert gridded.shift == pytest.approx(error, abs=0.03)
    assert gridded.shift_rms < 0.05
    assert gridded.fwhm == pytest.approx(2.8, rel=0.05)
    assert gridded.image.shape == SHAPE
    dx, dy = peaks_at(gridded.image, stars[0], stars[1])
    assert len(dx) > 30
    assert np.abs([np.median(dx), np.median(dy)]).max() < 0.03
    assert np.std(dx) < 0.1
    # positions of the source list are those on the science grid, the shift taken out
    near = np.hypot(gridded.sources.x[:, None] - stars[0], gridded.sources.y[:, None] - stars[1])
    bright = gridded.sources.clean & (gridded.sources.snr > 100)
    assert np.median(near[bright].min(axis=1)) < 0.06
    assert 2 * np.median(gridded.sources.half_light[bright]) == pytest.approx(2.8, rel=0.08)
    assert gridded.notes == ()


def test_fluxes_and_noise_go_through_the_projection(stars, science):
    image, sources = science
    wcs = wcs_of((520, 540), angle=2.0)
    x, y = on_template(wcs, image.wcs, stars[0], stars[1])
    native = star_field((520, 540), x, y, 2 * stars[2], fwhm=2.8, seed=4, sigma=2.0, wcs=wcs)
    gridded = to_science_grid(Template(native, FACTS), image, sources).image
    isolated = [
        n for n in range(len(stars[0]))
        if 15 < stars[0][n] < 400 and 15 < stars[1][n] < 380
        and np.sort(np.hypot(stars[0] - stars[0][n], stars[1] - stars[1][n]))[1] > 25
    ]  # fmt: skip
    ratios = []
    for n in isolated:
        row, column = round(stars[1][n]), round(stars[0][n])
        box = gridded.data[row - 9 : row + 10, column - 9 : column + 10]
        ratios.append(float(box.sum()) / (2 * stars[2][n]))
    assert len(ratios) > 20
    assert np.median(ratios) == pytest.approx(1.0, abs=0.01)
    blank = np.abs(gridded.data) < 6
    assert np.median(gridded.data[blank]) == pytest.approx(0, abs=0.1)  # its sky is gone
    assert np.sqrt(np.median(gridded.variance)) <= 2.1


def test_an_aligned_template_is_moved_by_whole_pixels_only(stars, science):
    image, sources = science
    native = star_field(
        SHAPE, stars[0] + 3.3, stars[1] - 2.2, 2 * stars[2], fwhm=2.8, seed=5, sigma=2.0
    )
    marked = native.mask.copy()
    marked[100, 200] = MaskBit.BAD
    native = replace(native, mask=marked)
    gridded = to_science_grid(Template(native, FACTS, on_grid=True), image, sources)
    assert gridded.shift == pytest.approx((3.3, -2.2), abs=0.05)
    moved = gridded.image
    sky = measure_sky(native)
    expected = native.data - sky.level
    np.testing.assert_array_equal(moved.data[2:, :-3], expected[:-2, 3:])
    assert np.argwhere(moved.mask == MaskBit.BAD).tolist() == [[102, 197]]
    missing = (moved.mask & MaskBit.NO_DATA) != 0
    assert missing[:2].all()
    assert missing[:, -3:].all()
    assert missing.sum() == 2 * SHAPE[1] + 3 * SHAPE[0] - 6
    assert (moved.variance > 0).all()
    dx, dy = peaks_at(moved, stars[0], stars[1])
    assert np.median(dx) == pytest.approx(0.3, abs=0.05)  # what is left is the kernel's
    assert np.median(dy) == pytest.approx(-0.2, abs=0.05)


def test_a_template_that_covers_a_part_says_where_not(stars, science):
    image, sources = science
    wcs = wcs_of((520, 540))
    wcs.wcs.crpix = wcs.wcs.crpix - [260, 0]
    wcs.wcs.set()
    x, y = on_template(wcs, image.wcs, stars[0], stars[1])
    native = star_field((520, 540), x, y, 2 * stars[2], fwhm=2.8, seed=6, sigma=2.0, wcs=wcs)
    gridded = to_science_grid(Template(native, FACTS), image, sources).image
    left, _ = on_template(image.wcs, wcs, [0.0], [260.0])
    covered = (gridded.mask & MaskBit.NO_DATA) == 0
    edge = int(np.argmax(covered.any(axis=0)))
    assert edge == pytest.approx(float(left[0]), abs=5)
    assert not covered[:, : edge - 1].any()
    assert covered[:, edge + 5 :].all()


def test_a_template_elsewhere_is_no_template(stars, science):
    image, sources = science
    wcs = wcs_of((520, 540), centre=(150.0, 31.0))
    native = star_field((520, 540), *stars, fwhm=2.8, seed=7, wcs=wcs)
    with pytest.raises(NoTemplate, match="does not overlap"):
        to_science_grid(Template(native, FACTS), image, sources)


def test_a_template_without_stars_says_that_its_place_was_not_checked(science):
    image, sources = science
    native = star_field((520, 540), [], [], [], fwhm=2.8, seed=8, wcs=wcs_of((520, 540)))
    gridded = to_science_grid(Template(native, FACTS), image, sources)
    assert gridded.shift == (0, 0)
    assert len(gridded.notes) == 2
    assert "position was not checked" in gridded.notes[1]
    assert gridded.fwhm == pytest.approx(3.6, rel=0.1)


def test_a_large_template_is_cut_to_the_exposure(stars, science):
    image, sources = science
    large = (1500, 1600)
    wcs = wcs_of(large)
    x, y = on_template(wcs, image.wcs, stars[0], stars[1])
    far = np.random.default_rng(10).uniform(0, 1500, (2, 600))
    x, y = np.append(x, far[0]), np.append(y, far[1])
    flux = np.append(2 * stars[2], np.full(600, 2e4))
    native = star_field(large, x, y, flux, fwhm=2.8, seed=9, sigma=2.0, wcs=wcs)
    gridded = to_science_grid(Template(native, FACTS), image, sources)
    assert len(gridded.sources) < 300  # not the stars of all of it
    dx, dy = peaks_at(gridded.image, stars[0], stars[1])
    assert np.abs([np.median(dx), np.median(dy)]).max() < 0.03


@pytest.mark.parametrize("dec", [90.0, 82.0, -88.0])
def test_a_pole_in_the_frame_does_not_cost_the_template(dec):
    # On a plate carree map the edge of such a frame is a wavy line, and the pole lies beyond it.
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---CAR", "DEC--CAR"]
    wcs.wcs.crval, wcs.wcs.cdelt, wcs.wcs.crpix = [180.0, 0.0], [-0.2, 0.2], [900.5, 450.5]
    wcs.wcs.set()
    template = Image(np.ones((900, 1800), np.float32), np.zeros((900, 1800), np.uint16), wcs=wcs)
    grid = wcs_of((100, 100), scale=720.0, centre=(10.0, dec))
    science = Image(np.zeros((100, 100), np.float32), np.zeros((100, 100), np.uint16), wcs=grid)
    projected = resample(cropped(template, science), grid, science.shape)
    whole = resample(template, grid, science.shape)
    assert (whole.mask != 0).mean() < 0.02
    np.testing.assert_array_equal(projected.mask != 0, whole.mask != 0)


def test_a_large_template_is_cut_to_the_frame():
    wcs = wcs_of((900, 900))
    template = Image(np.ones((900, 900), np.float32), np.zeros((900, 900), np.uint16), wcs=wcs)
    grid = wcs_of((100, 120), angle=30.0)
    science = Image(np.zeros((100, 120), np.float32), np.zeros((100, 120), np.uint16), wcs=grid)
    assert max(cropped(template, science).shape) < 260
