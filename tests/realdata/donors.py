"""Sources to inject: isolated bright stars of the image itself, scaled down.

A star of the image has the image's own PSF, whatever that is, and moved by whole pixels it keeps
it exactly: nothing that is under test (no PSF model, no interpolation) goes into the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import sep
from scipy.spatial import cKDTree

HALF = 12  # pixels of a stamp around its centre
FULL = 8.5  # radius up to which a stamp is kept whole; tapered to zero at HALF
MIN_SNR = 400.0  # of a donor: its noise, scaled down to a source of S/N 50, is far below the sky's


@dataclass(frozen=True)
class Donor:
    """A real star as a stamp of unit sum.

    Attributes
    ----------
    x, y : float
        Centroid on its image.
    stamp : ndarray of float64, shape (2 * HALF + 1, 2 * HALF + 1)
        Unit sum, the star's centre within half a pixel of the stamp's.
    dx, dy : float
        Centroid minus the stamp's central pixel.
    """

    x: float
    y: float
    stamp: npt.NDArray[np.float64]
    dx: float
    dy: float


@dataclass(frozen=True)
class Sources:
    """What SEP finds on an image; columns of shape (n,)."""

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    flux: npt.NDArray[np.float64]
    peak: npt.NDArray[np.float64]
    radius: npt.NDArray[np.float64]


def find(data: npt.NDArray[np.float32], rms: float, bad: npt.NDArray[np.bool_]) -> Sources:
    """Detect the sources of a background-subtracted image."""
    sep.set_extract_pixstack(2_000_000)
    table = sep.extract(data, 3.0, err=rms, mask=bad, minarea=4, clean=False)
    radius, _ = sep.flux_radius(
        data, table["x"], table["y"], np.full(len(table), 6.0), 0.5,
        normflux=np.maximum(table["flux"], 1e-3),
    )  # fmt: skip
    return Sources(table["x"], table["y"], table["flux"], table["peak"], radius)


def donors_of(
    data: npt.NDArray[np.float32],
    rms: float,
    bad: npt.NDArray[np.bool_],
    sources: Sources,
    *,
    highest_peak: float,
) -> list[Donor]:
    """Return the isolated bright stars of a background-subtracted image.

    Isolated: nothing above 0.3 % of its flux within a stamp and a half. Pixels beyond 5 pixels
    from its centre that are above 4 sigma are replaced by the median of their ring.
    """
    ny, nx = data.shape
    tree = cKDTree(np.column_stack([sources.x, sources.y]))
    snr = sources.flux / (rms * np.sqrt(np.pi) * 3)
    typical = np.median(sources.radius[snr > MIN_SNR / 2])
    donors = []
    rows, cols = np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1]
    for i in np.flatnonzero((snr > MIN_SNR) & (sources.peak < highest_peak)):
        x, y = sources.x[i], sources.y[i]
        xi, yi = round(x), round(y)
        if not (20 < xi < nx - 20 and 20 < yi < ny - 20):
            continue
        if abs(sources.radius[i] - typical) > 0.12 * typical:
            continue
        near = [j for j in tree.query_ball_point([x, y], 1.3 * HALF) if j != i]
        if sources.flux[near].sum() > 0.003 * sources.flux[i]:
            continue
        box = (slice(yi - HALF, yi + HALF + 1), slice(xi - HALF, xi + HALF + 1))
        if bad[box].any():
            continue
        stamp = data[box].astype(np.float64)
        distance = np.hypot(cols - (x - xi), rows - (y - yi))
        stamp -= np.median(stamp[distance > FULL + 2])
        for inner in np.arange(5, HALF + 5, 1.0):
            ring = (distance >= inner) & (distance < inner + 1)
            middle = np.median(stamp[ring]) if ring.any() else 0.0
            stamp[ring & (np.abs(stamp - middle) > 4 * rms)] = middle
        stamp *= np.clip((HALF - distance) / (HALF - FULL), 0, 1)
        donors.append(Donor(x, y, stamp / stamp.sum(), x - xi, y - yi))
    return donors
