"""From detections to candidates: what is kept, what is left out, and what is written down."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from core.detection import CandidateFlag, Detections, detect, significance
from core.image import ExposureFacts, Image, MaskBit
from core.measurement import Field, magnitude, magnitude_error, measure
from core.noise import Sky
from core.stars import SourceList
from tests.unit.made_frames import (
    FWHM_PER_SIGMA,
    add_gaussians,
    grid_of_places,
    made_difference,
)
from tests.unit.made_result import tan_wcs

SHAPE = (400, 500)
FWHM = 3.5
NOISE = 5.0
FLUX_ERR = NOISE * np.sqrt(4 * np.pi) * FWHM / FWHM_PER_SIGMA
ZERO_POINT = 26.0


def source_list(x, y, flux, snr):
    n = len(x)
    unknown = np.full(n, np.nan)
    return SourceList(
        np.array(x, float), np.array(y, float), np.array(flux, float), np.array(snr, float),
        unknown, np.ones(n), unknown, np.ones(n, bool),
    )  # fmt: skip


def made_field(
    data, *, mask=None, wcs=None, convolved=None, sources=None, zero_point=ZERO_POINT, scale=1.0
):
    """All that a measurement looks at, around the pixels of a difference."""
    empty = np.zeros(SHAPE, np.uint16)
    science = Image(
        data.astype(np.float32) + 200, empty, wcs=wcs,
        facts=ExposureFacts(zero_point=zero_point),
    )  # fmt: skip
    difference = made_difference(data, NOISE, FWHM, mask=mask, convolved=convolved)
    return Field(
        science,
        Image(np.zeros(SHAPE, np.float32), empty),
        difference,
        significance(difference),
        Sky(np.full(SHAPE, 200, np.float32), difference.noise, 200.0, NOISE),
        sources or source_list([], [], [], []),
        scale,
    )


def run(field, threshold=5.0, size=63):
    found = detect(field.significance.snr, field.difference.mask, threshold)
    return measure(field, found, threshold, size)


def blank(seed=1):
    return np.random.default_rng(seed).normal(0, NOISE, SHAPE)


def test_transients_of_both_signs_are_measured_right():
    data = blank()
    rng = np.random.default_rng(2)
    x, y = grid_of_places(SHAPE, 60, rng, margin=40)
    snr = rng.uniform(12, 80, x.size)
    sign = np.where(np.arange(x.size) % 3 == 0, -1, 1)
    flux = sign * snr * FLUX_ERR
    add_gaussians(data, x, y, flux, FWHM)
    wcs = tan_wcs()
    candidates, rejected = run(made_field(data, wcs=wcs))
    assert len(candidates) == len(x)
    assert sum(rejected.values()) <= 1
    assert [c.snr for c in candidates] == pytest.approx(
        sorted((c.snr for c in candidates), reverse=True), rel=0.2
    )
    for c in candidates:
        n = int(np.argmin(np.hypot(x - c.x, y - c.y)))
        assert np.hypot(c.x - x[n], c.y - y[n]) < 5 * np.hypot(c.x_err, c.y_err)
        assert abs(c.flux - flux[n]) < 4.5 * c.flux_err
        assert (c.sign, np.sign(c.flux)) == (sign[n], sign[n])
        assert c.snr == pytest.approx(abs(c.flux) / c.flux_err)
        assert c.mag == pytest.approx(ZERO_POINT - 2.5 * np.log10(abs(c.flux)))
        assert c.mag_err == pytest.approx(1.0857 / c.snr, rel=1e-3)
        expected = wcs.pixel_to_world(c.x, c.y)
        assert SkyCoord(c.ra, c.dec, unit="deg").separation(expected).arcsec < 1e-4
        assert abs(c.aperture_flux - flux[n]) < 4.5 * c.aperture_flux_err
        assert c.limiting_mag == pytest.approx(ZERO_POINT - 2.5 * np.log10(5 * FLUX_ERR), abs=0.15)
        assert c.sky == 200
        assert c.flags == 0
        assert c.cutouts.difference[31, 31] == np.float32(data)[round(c.y), round(c.x)]
        assert c.edge_distance == pytest.approx(min(c.x, c.y, 499 - c.x, 399 - c.y))


def test_a_dipole_is_left_out_and_counted():
    data = blank()
    add_gaussians(data, [250.2, 249.8, 100], [200, 200, 100], [6e4, -6e4, 5000], FWHM)
    candidates, rejected = run(made_field(data))
    assert [(round(c.x), round(c.y)) for c in candidates] == [(100, 100)]
    assert rejected == {"dipole": 2}


@pytest.mark.parametrize("height", [20, 100, 2000])
def test_a_cosmic_ray_is_left_out_as_sharp(height):
    data = blank()
    data[200, 250] += height * NOISE
    candidates, rejected = run(made_field(data))
    assert candidates == ()
    assert rejected == {"sharp": 1}


def test_a_track_of_a_cosmic_ray_gives_no_candidate():
    data = blank()
    for step in range(12):
        data[200 + step // 3, 250 + step] += 60 * NOISE
    candidates, rejected = run(made_field(data))
    assert candidates == ()
    assert sum(rejected.values()) >= 1


def test_what_lies_on_a_mask_is_left_out_and_what_lies_beside_is_flagged():
    data = blank()
    add_gaussians(data, [100, 250, 400], [200, 200, 200], 40 * FLUX_ERR, FWHM)
    mask = np.zeros(SHAPE, np.uint16)
    mask[198:203, 100:104] = MaskBit.BAD  # the centre and half of the core
    mask[190:211, 252] = MaskBit.SATURATED
    candidates, rejected = run(made_field(data, mask=mask))
    assert sorted(round(c.x) for c in candidates) == [250, 400]
    beside = min(candidates, key=lambda c: abs(c.x - 250))
    assert beside.flags & CandidateFlag.MASKED_NEAR
    assert beside.flags & CandidateFlag.SATURATED_NEAR
    assert beside.n_bad == 5
    assert beside.x == pytest.approx(250, abs=0.2)
    assert rejected.get("masked", 0) >= 1
    far = max(candidates, key=lambda c: c.x)
    assert far.flags == 0


def test_a_detection_on_a_masked_pixel_is_counted_as_masked():
    mask = np.zeros(SHAPE, np.uint16)
    mask[100, 100] = MaskBit.COSMIC_RAY
    field = made_field(blank(), mask=mask)
    found = Detections(
        np.array([100.0]), np.array([100.0]), np.array([1]), np.array([9.0]), np.array([False])
    )
    assert measure(field, found, 5.0, 63) == ((), {"masked": 1})


def test_one_source_gives_one_candidate():
    data = blank()
    add_gaussians(data, [250.3], [200.1], [60 * FLUX_ERR], FWHM)
    field = made_field(data)
    once = detect(field.significance.snr, field.difference.mask, 5.0)
    twice = Detections(
        np.append(once.x, 251.0), np.append(once.y, 200.0), np.append(once.sign, 1),
        np.append(once.peak_snr, 8.0), np.append(once.blended, True),
    )  # fmt: skip
    candidates, rejected = measure(field, twice, 5.0, 63)
    assert len(candidates) == 1
    assert rejected == {"duplicate": 1}
    assert not candidates[0].flags & CandidateFlag.BLENDED


def test_pixels_of_both_signs_are_no_source():
    data = blank()
    rows, cols = np.mgrid[195:206, 245:256]
    data[195:206, 245:256] += np.where((rows + cols) % 2, -1, 1) * 60 * NOISE
    candidates, rejected = run(made_field(data))
    assert candidates == ()
    assert sum(rejected.values()) >= 1


def add_badly_matched_star(data, x, y):
    """What a star of another ellipticity leaves: a quadrupole with some net flux."""
    add_gaussians(data, [x], [y], [25 * FLUX_ERR], FWHM)
    for step in (-2, 2):
        data[y, x + step] += 15 * NOISE
        data[y + step, x] -= 15 * NOISE


def test_a_residual_of_a_much_brighter_star_is_left_out_but_a_transient_on_it_is_kept():
    light = np.zeros(SHAPE)
    add_gaussians(light, [150, 250], [200, 200], 5e6, FWHM)
    data = blank()
    for centre in (150, 350):  # the second without a star
        add_badly_matched_star(data, centre, 200)
    add_gaussians(data, [250], [200], [25 * FLUX_ERR], FWHM)  # a transient on a star
    candidates, rejected = run(made_field(data, convolved=light.astype(np.float32)))
    assert rejected == {"residual": 1}
    assert sorted(round(c.x) for c in candidates) == [250, 350]
    unsound = next(c for c in candidates if c.x > 300)
    assert unsound.flags & CandidateFlag.POOR_FIT


def test_a_halo_is_left_out_but_a_wide_source_on_good_pixels_is_kept():
    data = blank()
    add_gaussians(data, [100, 300], [200, 200], 60 * FLUX_ERR, 1.7 * FWHM)
    mask = np.zeros(SHAPE, np.uint16)
    mask[195:206, 92:96] = MaskBit.SATURATED
    candidates, rejected = run(made_field(data, mask=mask))
    assert [round(c.x) for c in candidates] == [300]
    assert candidates[0].flags & CandidateFlag.EXTENDED
    assert rejected.get("halo", 0) >= 1


def test_noise_peaks_whose_fit_falls_short_are_faint():
    field = made_field(blank())
    found = detect(field.significance.snr, field.difference.mask, 3.5)
    assert len(found) > 10
    higher = replace(found, peak_snr=found.peak_snr)
    candidates, rejected = measure(field, higher, 8.0, 63)
    assert candidates == ()
    assert rejected["faint"] == len(found) - sum(
        n for reason, n in rejected.items() if reason != "faint"
    )
    assert rejected["faint"] > 0.7 * len(found)


def test_nearest_template_source_is_named_in_science_units():
    data = blank()
    add_gaussians(data, [250], [200], [60 * FLUX_ERR], FWHM)
    wcs = tan_wcs()
    sources = source_list([257, 100], [200, 100], [5000, 9000], [50, 90])
    candidates, _ = run(made_field(data, wcs=wcs, sources=sources, scale=2.0))
    near = candidates[0].nearest
    assert near.distance == pytest.approx(7, abs=0.1)
    assert near.mag == pytest.approx(ZERO_POINT - 2.5 * np.log10(10_000))
    assert near.mag_err == pytest.approx(1.0857 / 50, rel=1e-3)
    expected = wcs.pixel_to_world(257, 200)
    assert SkyCoord(near.ra, near.dec, unit="deg").separation(expected).arcsec < 1e-4


def test_without_wcs_zero_point_and_template_sources_there_are_pixels():
    data = blank()
    add_gaussians(data, [250], [200], [60 * FLUX_ERR], FWHM)
    (candidate,), _ = run(made_field(data, zero_point=None))
    nothing = (
        candidate.ra, candidate.dec, candidate.mag, candidate.mag_err, candidate.aperture_mag,
        candidate.limiting_mag, candidate.nearest, candidate.rb,
    )  # fmt: skip
    assert nothing == (None,) * len(nothing)
    assert candidate.flux == pytest.approx(60 * FLUX_ERR, rel=0.1)


def test_a_source_at_the_edge_has_whole_cutouts():
    data = blank()
    add_gaussians(data, [4.2], [396.1], [80 * FLUX_ERR], FWHM)
    (candidate,), _ = run(made_field(data), size=31)
    assert candidate.cutouts.science.shape == (31, 31)
    assert np.isnan(candidate.cutouts.science).sum() == 31 * 31 - 20 * 19
    assert candidate.flags == CandidateFlag.EDGE
    assert candidate.edge_distance == pytest.approx(399 - 396.1, abs=0.2)


def test_blank_sky_gives_almost_nothing():
    number = sum(len(run(made_field(blank(seed)))[0]) for seed in range(5, 11))
    assert number <= 2  # 6 frames at 5 sigma: 0.4 peaks expected


def test_magnitudes_need_a_zero_point_and_a_flux():
    assert magnitude(100.0, 25.0) == 20.0
    assert magnitude(-100.0, 25.0) == 20.0
    for flux, zero_point in ((0.0, 25.0), (np.nan, 25.0), (10.0, None)):
        assert magnitude(flux, zero_point) is None
    assert magnitude_error(100.0, 1.0, 25.0) == pytest.approx(0.010857, rel=1e-3)
    assert magnitude_error(100.0, np.inf, 25.0) is None
    assert magnitude_error(0.0, 1.0, 25.0) is None
