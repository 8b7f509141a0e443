"""The residual shift between the stars of two images on one pixel grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from core.polynomials import terms

Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Places:
    """Star positions on the science grid; columns of shape (n,), pixels."""

    x: Column
    y: Column
    snr: Column


@dataclass(frozen=True)
class Registration:
    """How the template lies against the science image.

    Attributes
    ----------
    dx, dy : float
        Template minus science position of the same star, median, pixels.
    rms : float
        Scatter per axis around a second-order fit over the frame, photon noise of the centroids
        taken out, pixels.
    matched : int
        Stars that were matched; 0 when the shift could not be measured (it is then 0).
    """

    dx: float = 0.0
    dy: float = 0.0
    rms: float = 0.0
    matched: int = 0


def register(
    science: Places,
    template: Places,
    fwhm: float,
    shape: tuple[int, int],
    *,
    search: float = 12.0,
) -> Registration:
    """Measure the shift by the stars that both images show.

    All pairs closer than ``search`` pixels vote for a displacement; the stars that agree with the
    most popular one to within half the seeing are matched one to one.

    Parameters
    ----------
    science, template : Places
        Stars of both, on the science pixel grid.
    fwhm : float
        The worse seeing of the two, pixels.
    shape : tuple of int
        (ny, nx) of the science grid.
    search : float
        The largest displacement looked for, pixels.
    """
    if len(science.x) < 3 or len(template.x) < 3:
        return Registration()
    ours = np.column_stack([science.x, science.y])
    theirs = np.column_stack([template.x, template.y])
    tree = cKDTree(theirs)
    neighbours = tree.query_ball_point(ours, search)
    delta = np.concatenate(
        [theirs[near] - ours[i] for i, near in enumerate(neighbours) if near] or [np.zeros((0, 2))]
    )
    if len(delta) < 3:
        return Registration()
    offset = _most_popular(delta, max(0.6, 0.35 * fwhm))
    distance, index = tree.query(ours + offset, distance_upper_bound=max(1.0, 0.5 * fwhm))
    found = np.flatnonzero(np.isfinite(distance))
    _, first = np.unique(index[found], return_index=True)
    found = found[first]
    if len(found) < 3 or len(found) < 0.02 * min(len(ours), len(theirs)):
        return Registration()
    moved = theirs[index[found]] - ours[found]
    shift = np.median(moved, axis=0)
    noise = np.hypot(
        _centroid_noise(fwhm, science.snr[found]),
        _centroid_noise(fwhm, template.snr[index[found]]),
    )
    rms = _scatter(ours[found], moved, noise, shape)
    return Registration(float(shift[0]), float(shift[1]), rms, len(found))


def _most_popular(delta: Column, cell: float) -> Column:
    """Return the displacement with the most others within ``cell`` of it."""
    tree = cKDTree(delta)
    sample = delta if len(delta) < 4000 else delta[:: len(delta) // 4000 + 1]
    votes = np.array([len(near) for near in tree.query_ball_point(sample, cell)])
    best = sample[int(np.argmax(votes))]
    near = tree.query_ball_point(best, cell)
    centre: Column = np.median(delta[near], axis=0)
    return centre


def _centroid_noise(fwhm: float, snr: Column) -> Column:
    """Photon noise of a centroid: ``sigma_psf / (S/N)`` with 20 % for the window."""
    return 1.2 * fwhm / 2.3548 / np.maximum(snr, 1.0)


def _scatter(places: Column, moved: Column, noise: Column, shape: tuple[int, int]) -> float:
    """Excess scatter of the brighter half around a smooth distortion; 0 if not significant."""
    keep = noise <= np.median(noise)
    order = 2 if keep.sum() >= 30 else 1 if keep.sum() >= 12 else 0
    basis = terms(order, places[keep, 0], places[keep, 1], shape)
    excess = []
    for axis in (0, 1):
        value, sigma = moved[keep, axis], noise[keep]
        good = np.ones(len(value), dtype=bool)
        residual = value - np.median(value)
        for _ in range(3):
            fit = np.linalg.lstsq(basis[good], value[good], rcond=None)[0]
            residual = value - basis @ fit
            spread = 1.4826 * np.median(np.abs(residual[good]))
            good = np.abs(residual) < 4 * max(spread, 1e-6)
            if good.sum() < basis.shape[1] + 3:
                return 0.0
        dof = good.sum() - basis.shape[1]
        variance = float((residual[good] ** 2).sum() / dof)
        expected = float(np.mean(sigma[good] ** 2))
        error = variance * np.sqrt(2 / dof)
        excess.append(variance - expected if variance - expected > 2 * error else 0.0)
    return float(np.sqrt(max(float(np.mean(excess)), 0.0)))
