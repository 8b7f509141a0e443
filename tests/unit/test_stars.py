"""The star list: who is in it, where, and what seeing it shows."""

import numpy as np
import pytest
import sep

from core.image import MaskBit
from core.simulate import Galaxies, SimulatedPSF, add_galaxies, add_stars
from core.stars import SourceList, contamination, find_sources, select_stars
from tests.unit.made_frames import FWHM_PER_SIGMA, add_gaussians, grid_of_places

SHAPE = (512, 512)
SIGMA = 5.0
RMS = np.full(SHAPE, SIGMA, np.float32)
CLEAR = np.zeros(SHAPE, np.uint16)


def observed(light, seed=1):
    return (light + np.random.default_rng(seed).normal(0, SIGMA, light.shape)).astype(np.float32)


def nearest(sources, x, y):
    """Index of the source nearest to each place, and how far it is."""
    distance = np.hypot(sources.x[:, None] - x, sources.y[:, None] - y)
    return distance.argmin(axis=0), distance.min(axis=0)


@pytest.fixture(scope="module")
def isolated():
    """Gaussian stars of 3 pixels FWHM on a grid: (pixels, x, y, flux)."""
    rng = np.random.default_rng(2)
    light = np.zeros(SHAPE)
    x, y = grid_of_places(SHAPE, 30, rng)
    flux = rng.uniform(1500, 30_000, x.size)
    add_gaussians(light, x, y, flux, 3.0)
    return observed(light), x, y, flux


def test_every_isolated_star_is_found_once_and_is_clean(isolated):
    data, x, y, _ = isolated
    sources = find_sources(data, RMS, CLEAR)
    index, distance = nearest(sources, x, y)
    assert distance.max() < 0.5
    assert len(sources) == len(x)
    assert len(set(index)) == len(x)
    assert sources.clean[index].all()


def test_positions_reach_the_photon_limit(isolated):
    data, x, y, flux = isolated
    sources = find_sources(data, RMS, CLEAR)
    index, _ = nearest(sources, x, y)
    s = 3.0 / FWHM_PER_SIGMA
    snr = flux / (SIGMA * np.sqrt(4 * np.pi) * s)  # of a matched filter
    limit = np.sqrt(2) * s / snr  # Cramér-Rao bound of a Gaussian on white noise
    for found, true in ((sources.x, x), (sources.y, y)):
        pull = (found[index] - true) / limit
        assert np.mean(pull) == pytest.approx(0, abs=0.2)
        assert 0.85 < np.std(pull) < 1.25


def test_signal_to_noise_is_that_of_its_aperture(isolated):
    data, x, y, flux = isolated
    sources = find_sources(data, RMS, CLEAR)
    index, _ = nearest(sources, x, y)
    s = 3.0 / FWHM_PER_SIGMA
    radius = np.maximum(1.7 * sources.half_light[index], 1.5)
    inside = 1 - np.exp(-0.5 * (radius / s) ** 2)
    expected = flux * inside / (SIGMA * np.sqrt(np.pi) * radius)
    assert np.median(sources.snr[index] / expected) == pytest.approx(1.0, abs=0.03)


def test_masked_stars_and_those_at_the_edge_are_not_clean(isolated):
    data, x, y, _ = isolated
    mask = CLEAR.copy()
    middle = len(x) // 2
    mask[round(y[middle]) + 2, round(x[middle])] = MaskBit.BAD
    light = np.zeros(SHAPE)
    add_gaussians(light, [2.0], [200.0], [20_000.0], 3.0)
    sources = find_sources(data + light.astype(np.float32), RMS, mask)
    index, _ = nearest(sources, np.append(x, 2.0), np.append(y, 200.0))
    dirty = np.flatnonzero(~sources.clean[index])
    assert set(dirty) == {middle, len(x)}


def test_a_saturated_star_is_one_source_and_not_clean():
    light = np.zeros(SHAPE)
    add_gaussians(light, [250.3], [260.1], [8e6], 5.0)
    full = light > 60_000
    data = observed(np.minimum(light, 60_000))
    sources = find_sources(data, RMS, np.where(full, MaskBit.SATURATED, 0).astype(np.uint16))
    assert full.sum() > 20
    assert len(sources) == 1
    assert not sources.clean[0]


def test_a_resolved_neighbour_does_not_move_a_star():
    light = np.zeros(SHAPE)
    add_gaussians(light, [100.2, 106.2], [100, 100], [2e4, 8e3], 3.0)
    sources = find_sources(observed(light), RMS, CLEAR)
    index, _ = nearest(sources, [100.2, 106.2], [100, 100])
    assert sources.clean[index].all()
    assert sources.x[index[0]] == pytest.approx(100.2, abs=0.02)
    assert sources.x[index[1]] == pytest.approx(106.2, abs=0.1)


def test_light_of_neighbours_in_a_core_is_what_gaussians_give():
    x, y = np.array([100.0, 105.0, 300.0]), np.array([50.0, 50.0, 50.0])
    share = contamination(x, y, np.array([100.0, 10.0, 50.0]), 1.5)
    reach = 5.0 - 1.2 * 1.5
    light = np.exp(-0.5 * (reach / 1.5) ** 2)
    np.testing.assert_allclose(share, [0.1 * light, 10 * light, 0.0])


def test_a_blank_frame_has_no_sources_and_no_seeing():
    for data in (observed(np.zeros(SHAPE)), np.zeros(SHAPE, np.float32)):
        sources = find_sources(data, RMS, CLEAR, threshold=7.0)
        assert len(sources) == 0
        stars = select_stars(sources)
        assert len(stars) == 0
        assert np.isnan(stars.fwhm)


def test_a_frame_that_overflows_the_buffer_gives_its_brightest():
    before = sep.get_extract_pixstack()
    light = np.zeros(SHAPE)
    rng = np.random.default_rng(3)
    x, y = grid_of_places(SHAPE, 60, rng)
    add_gaussians(light, x, y, 3e4, 3.0)
    light[100:400, 100:400] += 40  # a pedestal above the threshold
    sep.set_extract_pixstack(20_000)
    try:
        sources = find_sources(observed(light), RMS, CLEAR)
    finally:
        sep.set_extract_pixstack(before)
    _, distance = nearest(sources, x, y)
    assert np.mean(distance < 1) > 0.95


@pytest.mark.parametrize("fwhm", [2.2, 3.0, 5.0])
def test_seeing_of_gaussian_stars_is_right(fwhm):
    rng = np.random.default_rng(4)
    light = np.zeros(SHAPE)
    x, y = grid_of_places(SHAPE, 40, rng)
    add_gaussians(light, x, y, rng.uniform(2e4, 2e5, x.size), fwhm)
    stars = select_stars(find_sources(observed(light), RMS, CLEAR))
    # the pixel itself widens the narrowest
    assert stars.fwhm == pytest.approx(fwhm, rel=0.05 if fwhm < 2.5 else 0.03)
    assert len(stars) > 0.9 * len(x)


def test_seeing_of_moffat_stars_is_twice_their_half_light_radius():
    rng = np.random.default_rng(5)
    psf = SimulatedPSF.draw(rng, SHAPE, 3.5, 0.0, 0.0, "moffat", 3.5)
    light = np.zeros(SHAPE)
    x, y = grid_of_places(SHAPE, 50, rng)
    add_stars(light, psf, x, y, rng.uniform(5e4, 3e5, x.size))
    stars = select_stars(find_sources(observed(light), RMS, CLEAR))
    beta = 3.5
    theory = np.sqrt((2 ** (1 / (beta - 1)) - 1) / (2 ** (1 / beta) - 1))
    assert stars.fwhm / 3.5 == pytest.approx(theory, abs=0.04)


def test_galaxies_and_cosmic_rays_are_not_stars():
    rng = np.random.default_rng(6)
    psf = SimulatedPSF.draw(rng, SHAPE, 3.0, 0.0, 0.0, "gaussian")
    light = np.zeros(SHAPE)
    x, y = grid_of_places(SHAPE, 32, rng)
    kind = np.arange(x.size) % 3
    n = int((kind == 1).sum())
    add_stars(light, psf, x[kind == 0], y[kind == 0], rng.uniform(1e4, 1e5, (kind == 0).sum()))
    round_ones = Galaxies(
        x[kind == 1], y[kind == 1], np.zeros(n), np.full(n, 4.0), np.full(n, 0.9), np.zeros(n),
        np.zeros(n, bool),
    )  # fmt: skip
    add_galaxies(light, psf, round_ones, rng.uniform(3e4, 2e5, n))
    for row, column in zip(np.rint(y[kind == 2]), np.rint(x[kind == 2]), strict=True):
        light[int(row) : int(row) + 2, int(column) : int(column) + 2] += 2000
    sources = find_sources(observed(light), RMS, CLEAR)
    stars = select_stars(sources)
    assert stars.fwhm == pytest.approx(3.0, rel=0.04)
    index, _ = nearest(stars.sources, x, y)
    near = np.hypot(stars.sources.x[index] - x, stars.sources.y[index] - y) < 1
    assert near[kind == 0].mean() > 0.9
    assert near[kind == 1].mean() < 0.03
    assert near[kind == 2].mean() < 0.03


def test_the_brightest_come_first_and_no_more_than_asked(isolated):
    data, *_ = isolated
    sources = find_sources(data, RMS, CLEAR)
    stars = select_stars(sources, limit=17)
    assert len(stars) == 17
    assert (np.diff(stars.sources.flux) <= 0).all()
    assert stars.sources.flux[0] == select_stars(sources).sources.flux.max()


def test_a_handful_of_faint_stars_will_do():
    light = np.zeros(SHAPE)
    add_gaussians(light, [100, 250, 400], [100, 250, 300], [600, 800, 700], 3.0)
    stars = select_stars(find_sources(observed(light), RMS, CLEAR))
    assert len(stars) == 3
    assert stars.fwhm == pytest.approx(3.0, rel=0.3)


def test_rows_stay_together_when_some_are_selected():
    columns = [np.arange(5.0) + 10 * n for n in range(7)]
    sources = SourceList(*columns, np.array([True, False, True, False, True]))
    by_index = sources.select(np.array([3, 1]))
    assert (by_index.x.tolist(), by_index.peak.tolist()) == ([3, 1], [63, 61])
    by_mask = sources.select(sources.clean)
    assert by_mask.half_light.tolist() == [40, 42, 44]
    assert by_mask.clean.all()
