"""The star list of an image and its seeing."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import sep
from scipy.spatial import cKDTree

from core.image import FloatImage, MaskBit, MaskImage

Column = npt.NDArray[np.float64]
CONTAMINATION = 0.1  # of a source's peak, at the edge of its core


@dataclass(frozen=True)
class SourceList:
    """Sources of one image; all columns of shape (n,), pixels are 0-based.

    Attributes
    ----------
    x, y : ndarray of float64
        Windowed centroid.
    flux : ndarray of float64
        Isophotal flux above the background, ADU.
    snr : ndarray of float64
        Flux over its noise in a seeing-sized aperture.
    half_light : ndarray of float64
        Half-light radius, pixels.
    elongation : ndarray of float64
        Major over minor axis.
    peak : ndarray of float64
        Brightest pixel above the background, ADU.
    clean : ndarray of bool
        Not masked, saturated nor at the edge, and with little light of neighbours in its core. It
        may have been split from fainter neighbours: in a crowded field all bright stars are.
    """

    x: Column
    y: Column
    flux: Column
    snr: Column
    half_light: Column
    elongation: Column
    peak: Column
    clean: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.x)

    def select(self, keep: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> SourceList:
        """Return the rows that ``keep`` (a boolean mask or indices) picks, in its order."""
        return SourceList(
            self.x[keep], self.y[keep], self.flux[keep], self.snr[keep],
            self.half_light[keep], self.elongation[keep], self.peak[keep], self.clean[keep],
        )  # fmt: skip


@dataclass(frozen=True)
class StarList:
    """The point sources among the sources, brightest first, and the seeing they show.

    Attributes
    ----------
    sources : SourceList
        Clean, unresolved sources.
    fwhm : float
        Median full width at half maximum, pixels; NaN when nothing was found.
    """

    sources: SourceList
    fwhm: float

    def __len__(self) -> int:
        return len(self.sources)


def find_sources(
    data: FloatImage, rms: FloatImage, mask: MaskImage, *, threshold: float = 5.0
) -> SourceList:
    """Detect sources on a background-subtracted image.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Background-subtracted.
    rms : ndarray of float32, shape (ny, nx)
        Per-pixel noise.
    mask : ndarray of uint16, shape (ny, nx)
        `MaskBit` flags. Saturated pixels are kept during detection, so that a saturated star is
        one source and not a ring of them, and its source is then not ``clean``.
    threshold : float
        In units of the local noise, after a small matched filter.
    """
    hard = (mask & ~np.uint16(MaskBit.SATURATED)) != 0
    smoothing = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=np.float32)
    found = _extract(data, threshold, rms, hard, smoothing)
    ny, nx = data.shape
    x, y = found["x"].astype(float), found["y"].astype(float)
    size = np.maximum(np.sqrt(np.maximum(found["a"] * found["b"], 0.25)), 0.7)
    half_light, _ = sep.flux_radius(
        data, x, y, 6.0 * size, 0.5, normflux=np.maximum(found["flux"], 1e-6), mask=hard
    )
    finite = np.isfinite(half_light) & (half_light > 0)
    sigma = np.where(finite, half_light, size) / 1.177
    xw, yw, wflag = sep.winpos(data, x, y, np.maximum(sigma, 0.5), mask=hard)
    moved = np.hypot(xw - x, yw - y) > 1.5
    use = (wflag == 0) & ~moved & np.isfinite(xw) & np.isfinite(yw)
    x, y = np.where(use, xw, x), np.where(use, yw, y)
    radius = np.maximum(1.7 * half_light, 1.5)
    flux, flux_err, _ = sep.sum_circle(data, x, y, np.where(finite, radius, 1.5), err=rms)
    snr = flux / np.maximum(flux_err, 1e-30)
    reach = np.ceil(3 * size).astype(int) + 1
    bad_near = _any_masked(mask, x, y, reach)
    edge = (x < reach) | (y < reach) | (x > nx - 1 - reach) | (y > ny - 1 - reach)
    seeing = float(np.median(sigma[finite & (snr > 10)])) if (finite & (snr > 10)).any() else 1.0
    lonely = contamination(x, y, found["peak"].astype(float), seeing) < CONTAMINATION
    whole = (found["flag"] & ~np.int16(sep.OBJ_MERGED)) == 0
    clean = whole & lonely & finite & ~bad_near & ~edge & use
    return SourceList(
        x, y, found["flux"].astype(float), snr, np.where(finite, half_light, np.nan),
        found["a"] / np.maximum(found["b"], 1e-3), found["peak"].astype(float), clean,
    )  # fmt: skip


def contamination(x: Column, y: Column, peak: Column, sigma: float) -> Column:
    """Return the neighbours' light at the edge of each core, relative to its own peak.

    Parameters
    ----------
    x, y, peak : ndarray of float64, shape (n,)
        Places and brightest pixels of all sources.
    sigma : float
        Width of a point source, a Gaussian, pixels. The edge of a core is 1.2 sigma from its
        centre, towards the neighbour.

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    pairs = cKDTree(np.column_stack([x, y])).query_pairs(6 * sigma, output_type="ndarray")
    total = np.zeros(len(x))
    if len(pairs):
        i, j = pairs.T
        near = np.maximum(np.hypot(x[i] - x[j], y[i] - y[j]) - 1.2 * sigma, 0)
        light = np.exp(-0.5 * (near / sigma) ** 2)
        np.add.at(total, i, peak[j] * light)
        np.add.at(total, j, peak[i] * light)
    return total / np.maximum(peak, 1e-30)


def _extract(
    data: FloatImage,
    threshold: float,
    rms: FloatImage,
    mask: npt.NDArray[np.bool_],
    smoothing: npt.NDArray[np.float32],
) -> npt.NDArray[np.void]:
    """Run SEP, raising the threshold where a field has more pixels than its buffer holds."""
    for factor in (1.0, 3.0, 10.0):
        try:
            return sep.extract(
                data, threshold * factor, err=rms, mask=mask, minarea=4,
                filter_kernel=smoothing, filter_type="matched", clean=False,
                deblend_nthresh=16, deblend_cont=0.01,
            )  # fmt: skip
        except Exception as error:
            # SEP raises the bare Exception class; only its buffer message is expected here
            if "buffer" not in str(error) and "overflow" not in str(error):
                raise
    return np.zeros(
        0, dtype=[(name, "f8") for name in ("x", "y", "a", "b", "flux", "peak", "flag")]
    )


def _any_masked(
    mask: MaskImage, x: Column, y: Column, reach: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    ny, nx = mask.shape
    xi, yi = np.rint(x).astype(int), np.rint(y).astype(int)
    x0, x1 = np.clip(xi - reach, 0, nx), np.clip(xi + reach + 1, 0, nx)
    y0, y1 = np.clip(yi - reach, 0, ny), np.clip(yi + reach + 1, 0, ny)
    hit = np.zeros(len(x), dtype=np.bool_)
    _look_into(mask, x0, x1, y0, y1, hit)
    return hit


@numba.njit(nogil=True, cache=True)
def _look_into(mask, x0, x1, y0, y1, hit):  # type: ignore[no-untyped-def] # pragma: no cover
    for n in range(x0.size):
        for y in range(y0[n], y1[n]):
            for x in range(x0[n], x1[n]):
                if mask[y, x] != 0:
                    hit[n] = True
                    break
            if hit[n]:
                break


def select_stars(sources: SourceList, *, limit: int = 2000) -> StarList:
    """Pick the stellar locus: the narrow band of half-light radii at the small end.

    Parameters
    ----------
    sources : SourceList
        As `find_sources` gives it.
    limit : int
        The most stars to keep, brightest first.

    Notes
    -----
    The seeing is twice the median half-light radius of the locus, which is exact for a Gaussian.
    A bright Moffat star has more light in its wings: 21 % too large for an index of 3.5. It is the
    size to look for; the PSF model (`core.psf`) measures the FWHM itself.
    """
    good = sources.clean & (sources.snr > 15) & (sources.elongation < 2.0)
    if good.sum() < 5:
        good = sources.clean & (sources.snr > 7)
    candidates = np.flatnonzero(good)
    if candidates.size == 0:
        return StarList(sources.select(candidates), float("nan"))
    bright = candidates[np.argsort(-sources.snr[candidates])][: max(20, candidates.size // 2)]
    radii = sources.half_light[bright]
    centre = _mode(radii)
    for _ in range(5):
        near = np.abs(radii - centre) < max(0.15 * centre, 0.15)
        if not near.any():
            break
        centre = float(np.median(radii[near]))
    half_light = sources.half_light[candidates]
    locus = candidates[np.abs(half_light - centre) < max(0.25 * centre, 0.2)]
    locus = locus[np.argsort(-sources.flux[locus])][:limit]
    return StarList(sources.select(locus), 2.0 * centre)


def select_saturated(sources: SourceList, mask: MaskImage, *, limit: int = 30) -> SourceList:
    """Pick the sources with a saturated core, brightest first.

    Parameters
    ----------
    sources : SourceList
        As `find_sources` gives it.
    mask : ndarray of uint16, shape (ny, nx)
        `MaskBit` flags.
    limit : int
        The most to keep.
    """
    ny, nx = mask.shape
    x = np.clip(np.rint(np.nan_to_num(sources.x)).astype(int), 0, nx - 1)
    y = np.clip(np.rint(np.nan_to_num(sources.y)).astype(int), 0, ny - 1)
    chosen = np.flatnonzero((mask[y, x] & MaskBit.SATURATED) != 0)
    return sources.select(chosen[np.argsort(-sources.flux[chosen], kind="stable")][:limit])


def _mode(values: Column) -> float:
    """Return the centre of the shortest interval that holds a third of the values."""
    ordered = np.sort(values)
    n = max(2, len(ordered) // 3)
    if len(ordered) < 4:
        return float(np.median(ordered))
    widths = ordered[n - 1 :] - ordered[: len(ordered) - n + 1]
    start = int(np.argmin(widths))
    return float(np.median(ordered[start : start + n]))
