"""Registering frames on their stars and averaging them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core import coadd
from core.errors import QualityRejected
from core.image import Image, MaskBit
from tests.unit.made_frames import add_gaussians, made_image

SHAPE = (260, 280)
SKY, GAIN, READ_NOISE = 400.0, 2.0, 5.0
NOISE = np.sqrt(SKY / GAIN + (READ_NOISE / GAIN) ** 2)


def stars() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    n = 90
    return rng.uniform(20, 260, n), rng.uniform(20, 240, n), 10 ** rng.uniform(3.5, 4.7, n)


def made_exposure(
    seed: int, matrix: np.ndarray, *, scale: float = 1.0, fwhm: float = 3.5, spikes: int = 0
) -> Image:
    """Stars of the common grid, seen through ``matrix``, with sky, photon and read noise."""
    rng = np.random.default_rng(seed)
    x, y, flux = stars()
    light = np.full(SHAPE, SKY)
    add_gaussians(light, *(matrix @ [x, y, np.ones_like(x)]), scale * flux, fwhm)
    data = rng.poisson(light * GAIN) / GAIN + rng.normal(0, READ_NOISE / GAIN, SHAPE)
    data[rng.integers(30, 230, spikes), rng.integers(30, 250, spikes)] += 3000
    return made_image(data, gain=GAIN, read_noise=READ_NOISE)


def moved(dx: float, dy: float, angle: float = 0.0) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, dx], [s, c, dy]])


def test_alignment_finds_matrix_and_flux_ratio() -> None:
    truth = moved(4.37, -2.81, 0.003)
    reference = coadd.measure_frame(made_exposure(1, moved(0, 0)))
    frame = coadd.measure_frame(made_exposure(2, truth, scale=0.7, fwhm=4.2))
    found = coadd.align(frame, reference, moved(5.5, -1.9))
    corners = np.array([[20, 20, 1], [260, 20, 1], [20, 240, 1], [260, 240, 1]]).T
    # 60 stars with centroids good to some 0.02 pixels each
    assert np.abs(found.matrix @ corners - truth @ corners).max() < 0.05
    assert found.rms < 0.1
    assert found.matched > 40
    assert found.flux_ratio == pytest.approx(0.7, abs=0.02)


def test_a_wrong_guess_is_refused() -> None:
    reference = coadd.measure_frame(made_exposure(1, moved(0, 0)))
    frame = coadd.measure_frame(made_exposure(2, moved(40, 30)))
    with pytest.raises(QualityRejected, match="agree with"):
        coadd.align(frame, replace(reference, sources=reference.sources.select(slice(0, 8))),
                    moved(0, 0))  # fmt: skip


@pytest.fixture(scope="module")
def average() -> Image:
    matrices = [moved(0, 0), moved(3.4, 1.2), moved(-2.3, 4.1), moved(0.5, -3.6)]
    scales = [1.0, 0.8, 1.25, 1.0]
    frames = [
        coadd.measure_frame(made_exposure(10 + i, m, scale=s, spikes=40))
        for i, (m, s) in enumerate(zip(matrices, scales, strict=True))
    ]
    alignments = [
        coadd.align(frame, frames[0], m) for frame, m in zip(frames, matrices, strict=True)
    ]
    return coadd.coadd(frames, alignments, SHAPE)


def test_average_keeps_the_fluxes_of_the_reference(average: Image) -> None:
    x, y, flux = stars()
    lonely = [
        i for i in range(len(x))
        if np.sort(np.hypot(x - x[i], y - y[i]))[1] > 16 and flux[i] > 8000
        and 20 < x[i] < 260 and 20 < y[i] < 240
    ]  # fmt: skip
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    ratios = []
    for i in lonely:
        near = np.hypot(cols - x[i], rows - y[i]) < 6
        ratios.append(average.data[near].sum() / flux[i])
    assert len(ratios) >= 5
    assert np.median(ratios) == pytest.approx(1, abs=0.02)


def test_average_is_less_noisy_and_knows_how_much(average: Image) -> None:
    assert average.variance is not None
    noise = np.sqrt(np.median(average.variance))
    # four frames of scales 1, 0.8, 1.25 and 1: weights go with the scale squared
    assert noise == pytest.approx(NOISE / np.sqrt(1 + 0.64 + 1.5625 + 1), rel=0.1)
    blank = (np.abs(average.data) < 4 * noise) & ~average.bad
    # sums over blocks: what interpolation takes from single pixels it leaves in these
    blocks = [
        average.data[y : y + 6, x : x + 6].sum() / 6
        for y in range(24, 230, 6) for x in range(24, 250, 6)
        if blank[y : y + 6, x : x + 6].all()
    ]  # fmt: skip
    assert 1.4826 * np.median(np.abs(blocks - np.median(blocks))) == pytest.approx(noise, rel=0.25)


def test_cosmic_rays_of_single_frames_are_left_out(average: Image) -> None:
    x, y, _ = stars()
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    far = np.ones(SHAPE, dtype=bool)
    for xi, yi in zip(x, y, strict=True):
        far &= np.hypot(cols - xi, rows - yi) > 10
    inner = far & ~average.bad
    inner[:20], inner[-20:], inner[:, :20], inner[:, -20:] = False, False, False, False
    assert average.data[inner].max() < 8 * NOISE


def test_where_too_little_is_left_there_is_no_data(average: Image) -> None:
    assert (average.mask[:, -1] & MaskBit.NO_DATA).any() or (
        average.mask[0] & MaskBit.NO_DATA
    ).any()
    assert np.isfinite(average.data).all()
    assert (average.mask[40:220, 40:240] & MaskBit.NO_DATA).mean() < 0.01


def test_frames_and_alignments_must_agree() -> None:
    with pytest.raises(ValueError, match="0 frames"):
        coadd.coadd([], [], SHAPE)
