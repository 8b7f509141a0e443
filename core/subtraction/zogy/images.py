"""Images as the proper subtraction needs them: everything known, and no pixel missing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numba
import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy import ndimage

from core.errors import SubtractionFailed
from core.image import FloatImage, Image, MaskImage
from core.psf import PSFModel, gaussian_psf
from core.stars import SourceList
from core.subtraction.zogy.psf import denoised
from core.subtraction.zogy.psf_fit import fit_psf
from core.subtraction.zogy.transform import Trust, regularised, transfer, trust_in

WEAK_FLOOR = 1e-6
FILL_SNR = 30.0  # per frequency, below which a PSF ratio is not believed
MARGIN = 12  # pixels around a hole that it is interpolated from
BLOCK = 4  # pixels
LARGEST_HOLE = 20_000  # pixels
PATCH = 512  # pixels over which one PSF ratio serves for filling


@dataclass(frozen=True)
class KnownImage:
    """A sky-subtracted image with its noise and its PSF; planes of shape (ny, nx).

    Attributes
    ----------
    data : ndarray of float32
        ADU.
    mask : ndarray of uint16
        `core.image.MaskBit` flags.
    bad : ndarray of bool
        Where any of them is set.
    variance : ndarray of float32 or None
        ADU²; None for an image without noise.
    psf : PSFModel
    trust : Trust
        In that PSF.
    name : str
    """

    data: FloatImage
    mask: MaskImage
    bad: npt.NDArray[np.bool_]
    variance: FloatImage | None
    psf: PSFModel
    trust: Trust
    name: str

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        return self.data.shape[0], self.data.shape[1]

    def typical_variance(self) -> float:
        """Median variance of the good pixels, 0 without one.

        Raises
        ------
        core.errors.SubtractionFailed
            If it is not a positive number.
        """
        if self.variance is None:
            return 0.0
        step = max(1, int(np.sqrt(self.data.size / 1e6)))
        sample = self.variance[::step, ::step][~self.bad[::step, ::step]]
        typical = float(np.median(sample)) if sample.size else float("nan")
        if not np.isfinite(typical) or typical <= 0:
            raise SubtractionFailed(
                f"{self.name}: the median of its variance is {typical:g}; check its noise map"
            )
        return typical


def known(
    image: Image,
    fwhm: float,
    stars: SourceList | None = None,
    shift: tuple[float, float] = (0.0, 0.0),
) -> KnownImage:
    """Describe an image; a Gaussian of the given seeing stands in for a missing PSF.

    Parameters
    ----------
    image : Image
        Sky-subtracted.
    fwhm : float
        Seeing, pixels.
    stars : SourceList, optional
        To refine a measured PSF on (`core.subtraction.zogy.psf_fit`).
    shift : tuple of float
        (dx, dy): they are expected at x + dx, y + dy, pixels.
    """
    psf = image.psf
    if psf is None:
        psf = gaussian_psf(fwhm, image.shape)
    elif psf.n_stars > 0:
        if stars is not None and image.variance is not None:
            psf = fit_psf(image.data, image.variance, image.bad, stars, psf, shift)
        psf = denoised(psf)
    return KnownImage(
        image.data, image.mask, image.bad, image.variance, psf, trust_in(psf), image.name
    )


def floors(
    science: KnownImage, template: KnownImage, scale: float
) -> tuple[KnownImage, KnownImage]:
    """Let D go over into one image where neither PSF has any power left.

    It is the image whose coefficient, its noise taken into account, is the larger one at the
    highest frequency where both PSFs are known. So no kernel has an edge in frequency, and rings.

    Parameters
    ----------
    science, template : KnownImage
    scale : float
        Science ADU per template ADU.
    """
    highest = 0.9 * min(science.trust.firm_cutoff, template.trust.firm_cutoff, 0.5)
    of_template = _power_at(science.psf, highest) * template.typical_variance() * scale**2
    of_science = _power_at(template.psf, highest) * science.typical_variance()
    low, high = (science, template) if of_science >= of_template else (template, science)
    weak = replace(low, trust=replace(low.trust, floor=WEAK_FLOOR))
    # its transform stays positive, at twice its noise, so that the coefficient keeps its sign
    trust = replace(high.trust, cutoff=high.trust.firm_cutoff, rise=2 * high.trust.noise)
    strong = replace(high, trust=trust)
    return (weak, strong) if low is science else (strong, weak)


def _power_at(psf: PSFModel, frequency: float) -> float:
    """Mean power of the central PSF around a spatial frequency, cycles per pixel."""
    ny, nx = psf.shape
    side = int(scipy.fft.next_fast_len(2 * psf.size, real=True))
    spectrum = transfer(psf.at(0.5 * (nx - 1), 0.5 * (ny - 1)), (side, side))
    k = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    ring = np.abs(k - frequency) < 0.02
    return float(np.mean(np.abs(spectrum[ring]) ** 2))


def filled(
    science: KnownImage,
    template: KnownImage,
    scale: float,
    shift: tuple[float, float],
    *,
    threads: int = 1,
) -> tuple[KnownImage, KnownImage]:
    """Replace the bad pixels of each image by what the other one shows.

    The other image is convolved with the regularised ratio of the two PSFs, so that a bad column
    through a star leaves little on the difference but its own noise. Pixels that are bad in both
    are interpolated, each image by itself, or zero where there are too many of them.

    Parameters
    ----------
    science, template : KnownImage
    scale : float
        Science ADU per template ADU.
    shift : tuple of float
        (dx, dy): sources lie at x + dx, y + dy on the template, pixels.
    threads : int
        Threads to use; there is work for two.
    """
    both = science.bad & template.bad
    back = (-shift[0], -shift[1])
    with ThreadPoolExecutor(min(threads, 2)) as pool:
        ours = pool.submit(_fill, science, template, scale, shift, both)
        theirs = pool.submit(_fill, template, science, 1 / scale, back, both)
        filled_science, filled_template = ours.result(), theirs.result()
    _interpolate((filled_science, filled_template), both)
    return replace(science, data=filled_science), replace(template, data=filled_template)


def _interpolate(planes: tuple[FloatImage, FloatImage], holes: npt.NDArray[np.bool_]) -> None:
    """Fill holes smoothly from their surroundings, in place: an edge would ring."""
    ny, nx = holes.shape
    # holes that are a few pixels apart are filled together: to label blocks is much faster
    padded = np.pad(holes, ((0, -ny % BLOCK), (0, -nx % BLOCK)))
    blocks = padded.reshape(-(-ny // BLOCK), BLOCK, -(-nx // BLOCK), BLOCK).any(axis=(1, 3))
    labels, n = ndimage.label(blocks, structure=np.ones((3, 3)))
    for number, box in enumerate(ndimage.find_objects(labels, n), start=1):
        rows, columns = (
            slice(max(0, BLOCK * side.start - MARGIN), min(length, BLOCK * side.stop + MARGIN))
            for side, length in zip(box, (ny, nx), strict=True)
        )
        window = rows, columns
        of_block = np.ix_(
            np.arange(rows.start, rows.stop) // BLOCK,
            np.arange(columns.start, columns.stop) // BLOCK,
        )
        inside = holes[window] & (labels[of_block] == number)
        if inside.sum() > LARGEST_HOLE:
            continue
        good = (~holes[window]).astype(np.float32)
        for plane in planes:
            value, weight = plane[window] * good, good
            fill = np.zeros_like(value)
            open_ = inside.copy()
            for sigma in (1.0, 2.0, 4.0, 8.0):
                total = ndimage.gaussian_filter(value, sigma, truncate=3.0)
                norm = ndimage.gaussian_filter(weight, sigma, truncate=3.0)
                reached = open_ & (norm > 0.1)
                fill[reached] = total[reached] / norm[reached]
                open_ &= ~reached
            plane[window][inside] = fill[inside]


def _fill(
    image: KnownImage,
    other: KnownImage,
    scale: float,
    shift: tuple[float, float],
    both: npt.NDArray[np.bool_],
) -> FloatImage:
    data = _without(image.data, image.bad)
    wanted = image.bad & ~both
    if not wanted.any():
        return data
    ny, nx = image.shape
    half = max(image.psf.size, other.psf.size) // 2
    for y0 in range(0, ny, PATCH):
        for x0 in range(0, nx, PATCH):
            rows, columns = np.nonzero(wanted[y0 : y0 + PATCH, x0 : x0 + PATCH])
            if rows.size == 0:
                continue
            place = (min(x0 + PATCH // 2, nx - 1), min(y0 + PATCH // 2, ny - 1))
            kernel = (_ratio(image, other, place, shift, half) * scale).astype(np.float32)
            values = _sums_at(other.data, other.bad, kernel, rows + y0, columns + x0)
            data[rows + y0, columns + x0] = values
    return data


@numba.njit(nogil=True, cache=True)
def _without(data, bad):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = data.shape
    out = np.empty((ny, nx), dtype=np.float32)
    for y in range(ny):
        for x in range(nx):
            out[y, x] = np.float32(0) if bad[y, x] else data[y, x]
    return out


def _ratio(
    image: KnownImage,
    other: KnownImage,
    place: tuple[int, int],
    shift: tuple[float, float],
    half: int,
) -> npt.NDArray[np.float64]:
    """Kernel that gives ``other`` PSF and position of ``image``; shape (2 half + 1,) * 2."""
    side = int(scipy.fft.next_fast_len(4 * half + 2, real=True))
    ky, kx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    k2 = ky**2 + kx**2
    wanted = regularised(transfer(image.psf.at(*place), (side, side)), k2, image.trust)
    given = regularised(transfer(other.psf.at(*place), (side, side)), k2, other.trust)
    phase = np.exp(2j * np.pi * (kx * shift[0] + ky * shift[1]))
    ratio = phase * wanted * np.conj(given) / (np.abs(given) ** 2 + FILL_SNR**-2)
    kernel = np.roll(scipy.fft.irfft2(ratio, s=(side, side)), (half, half), axis=(0, 1))
    cut = kernel[: 2 * half + 1, : 2 * half + 1]
    return np.asarray(cut / cut.sum(), dtype=np.float64)


@numba.njit(nogil=True, cache=True)
def _sums_at(image, bad, kernel, rows, columns):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = image.shape
    half = kernel.shape[0] // 2
    out = np.zeros(rows.size, dtype=np.float32)
    for n in range(rows.size):
        total = 0.0
        for j in range(-half, half + 1):
            y = rows[n] - j
            if y < 0 or y >= ny:
                continue
            for i in range(-half, half + 1):
                x = columns[n] - i
                if 0 <= x < nx and not bad[y, x]:
                    total += kernel[half + j, half + i] * image[y, x]
        out[n] = total
    return out
