"""Proper subtraction of one tile in Fourier space.

The formulas are those of Zackay, Ofek & Gal-Yam 2016 (ApJ 830, 27), with the flux scale of the
science image taken as one and that of the template as ``1 / beta`` (``beta``: science ADU per
template ADU), in images divided by their own sky noise. With ``rho = sigma_n / (beta sigma_r)``,
``a = rho P_r``, ``b = P_n`` and ``g = |a|² + |b|²``:

* ``D = (a N - b R) / sqrt(g)`` has white noise of unit variance (their equation 13),
* ``S = conj(P_r P_n) rho / sqrt(g) * D`` (equation 17), whose value on a point source is its flux
  times ``F_S = mean |rho P_r P_n|² / g`` (equation 42).

The PSFs, the flux scale and the shift vary over the frame, so they vary within a tile: every plane
is given with its first derivative along x and y, and ``plane + u d/du + v d/dv`` holds to second
order. Tiles join without a seam to that order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import scipy.fft

from core.psf import PSFModel

Complex = npt.NDArray[np.complex64]
Stamp = npt.NDArray[np.floating]
Real = npt.NDArray[np.float32]

WHITE_FLOOR = 1e-4
SURE = 6.0  # times its noise: from there on a PSF's changes over the frame are believed
LN2 = 0.6931471805599453
NOISELESS = 0.1  # of the science image's noise, for a template that is said to have none


@dataclass(frozen=True)
class FittedPSF(PSFModel):
    """A PSF model whose noise is known.

    Attributes
    ----------
    noise : float
        Level of the noise in its transform, relative to the power at zero frequency; 0 where it is
        not known.
    """

    noise: float = 0.0


@dataclass(frozen=True)
class Trust:
    """How far a PSF model is believed.

    Attributes
    ----------
    cutoff : float
        Spatial frequency, cycles per pixel, beyond which it holds nothing but noise; 10, beyond
        any, where it holds none.
    odd_cutoff : float
        The same for its odd part (the imaginary part of the transform).
    noise : float
        Level of that noise, relative to the power at zero frequency; changes over the frame are
        believed where the PSF is some times stronger.
    floor : float
        Level that is added to the PSF's transform everywhere.
    rise : float
        Level that takes its place beyond the cutoff.
    firm_cutoff : float
        Frequency up to which it is three times its noise.
    """

    cutoff: float
    odd_cutoff: float
    noise: float
    floor: float = WHITE_FLOOR
    rise: float = 0.0
    firm_cutoff: float = 10.0


@dataclass(frozen=True)
class TileModel:
    """What is known about a tile: value at its centre, change from there to its edge.

    Attributes
    ----------
    science_psf, template_psf : ndarray, shape (3, size, size)
        Centred stamps of unit sum: at the centre, and their half-differences along x and y.
    rho : float
        ``sigma_n / (beta sigma_r)`` at the centre.
    log_beta_slope : tuple of float
        Change of ``log(beta)`` along x and y.
    shift : tuple of float
        (dx, dy) at the centre: sources lie at x + dx, y + dy on the template.
    shift_slope : tuple of tuple of float
        Change of (dx, dy) along x, then along y.
    science_trust, template_trust : Trust
        Up to which frequency the PSF models are believed.
    """

    science_psf: Stamp
    template_psf: Stamp
    rho: float
    log_beta_slope: tuple[float, float]
    shift: tuple[float, float]
    shift_slope: tuple[tuple[float, float], tuple[float, float]]
    science_trust: Trust
    template_trust: Trust


def transfer(stamp: Stamp, shape: tuple[int, int], out: Complex | None = None) -> Complex:
    """Fourier transform of a centred stamp, its centre at pixel (0, 0) of a larger grid.

    Parameters
    ----------
    stamp : ndarray, shape (sy, sx)
        Odd sides, no larger than the grid.
    shape : tuple of int
        (ny, nx) of the grid.
    out : ndarray of complex64, shape (ny, nx // 2 + 1), optional
        Memory to use.

    Returns
    -------
    ndarray of complex64, shape (ny, nx // 2 + 1)
    """
    ny, nx = shape
    sy, sx = stamp.shape
    hy, hx = sy // 2, sx // 2
    rows = np.zeros((sy, nx), dtype=np.float32)
    rows[:, : sx - hx] = stamp[:, hx:]
    if hx:
        rows[:, -hx:] = stamp[:, :hx]
    along_x = scipy.fft.rfft(rows, axis=1)
    wrapped = np.empty((ny, nx // 2 + 1), dtype=np.complex64) if out is None else out
    wrapped[sy - hy : ny - hy] = 0
    wrapped[: sy - hy] = along_x[hy:]
    if hy:
        wrapped[-hy:] = along_x[:hy]
    return _in_place(wrapped)


def trust_in(psf: PSFModel) -> Trust:
    """Find the spatial frequency at which a PSF model drowns in its own noise.

    Noise has no symmetry, while a PSF that is centred is nearly even at high frequencies: the
    imaginary part of the transform tells how noisy the model is at most. A comatic PSF has an odd
    part of its own, so the noise that a fit knows of is believed where it is less.
    """
    ny, nx = psf.shape
    side = int(scipy.fft.next_fast_len(2 * psf.size, real=True))
    spectrum = transfer(psf.at(0.5 * (nx - 1), 0.5 * (ny - 1)), (side, side))
    k = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    noise2 = 2 * float(np.mean(spectrum.imag[(k > 0.25) & (k < 0.5)] ** 2))
    if isinstance(psf, FittedPSF) and psf.noise > 0:
        # in the corners of the frequency plane no PSF has power
        corners = float(np.mean(np.abs(spectrum[k > 0.6]) ** 2))
        noise2 = min(noise2, max(psf.noise**2, corners))
    # from high frequencies down, until there is power: below, a ring that has little by chance
    # (as the odd part has where it changes sign, and near zero frequency) does not cut off the rest
    cutoffs = [10.0, 10.0, 10.0]
    found = [False, False, False]
    for low in np.arange(0.65, 0.03, -0.02):
        ring = spectrum[(k >= low) & (k < low + 0.04)]
        power = float(np.mean(np.abs(ring) ** 2))
        odd = float(np.mean(ring.imag**2))
        for i, seen in enumerate((power >= 3 * noise2, power >= 9 * noise2, odd >= 2 * noise2)):
            found[i] |= seen
            if not found[i]:
                cutoffs[i] = float(low) + 0.02
    cutoff, firm_cutoff, odd_cutoff = cutoffs
    return Trust(cutoff, odd_cutoff, float(np.sqrt(noise2)), firm_cutoff=firm_cutoff)


def regularised(
    spectrum: npt.NDArray[Any], k2: npt.NDArray[np.floating], trust: Trust
) -> npt.NDArray[np.complex128]:
    """Take what is noise out of a PSF's transform, and add a small positive level everywhere.

    Where neither PSF has anything left, D is then one image alone (the one that counts for more
    just before, see `core.subtraction.zogy.images.floors`), with a compact kernel; noise of random
    phase would smear every bad pixel over a PSF's stamp. The level itself leaves 1e-4 of a star's
    flux on the difference.

    Parameters
    ----------
    spectrum : ndarray of complex
        Transform of a centred PSF.
    k2 : ndarray of float
        Squared frequency, cycles² per pixel².
    trust : Trust
    """
    passed = np.exp(-LN2 * np.minimum((k2 / trust.cutoff**2) ** 4, 100))
    odd = np.exp(-LN2 * np.minimum((k2 / trust.odd_cutoff**2) ** 4, 100))
    believed = (spectrum.real + 1j * odd * spectrum.imag) * passed
    level = trust.floor + trust.rise * (1 - passed)
    return np.asarray(believed + level, dtype=np.complex128)


def _in_place(rows: Complex, workers: int = 1) -> Complex:
    """Transform along the columns; scipy may work in place, but does not promise it."""
    columns = scipy.fft.fft(rows, axis=0, overwrite_x=True, workers=workers)
    if columns is not rows:
        rows[:] = columns
    return rows


@dataclass(frozen=True)
class TilePlanes:
    """Planes of one tile, in units of the sky noise; as many of its rows as are wanted.

    Attributes
    ----------
    difference : tuple of 3 ndarrays of float32, shape (ny, nx)
        D of unit variance, and its derivatives along x and y.
    score : tuple of 3 ndarrays of float32, shape (ny, nx)
        S, and its derivatives.
    template_difference, template_score : ndarray of float32, shape (ny, nx)
        The template's part in D and in S (to be subtracted there).
    flux_norm : tuple of float
        F_S and its derivatives.
    """

    difference: tuple[Real, Real, Real]
    score: tuple[Real, Real, Real]
    template_difference: Real
    template_score: Real
    flux_norm: tuple[float, float, float]


class Workspace:
    """Memory for one tile after the other: to get it anew takes as long as to work in it.

    Attributes
    ----------
    tile : ndarray of float32, shape (ny, nx)
        A tile with its border.
    images : ndarray of complex64, shape (2, ny, nx // 2 + 1)
        Transforms of two images.
    psfs : ndarray of complex64, shape (6, ny, nx // 2 + 1)
    spectra : ndarray of complex64, shape (8, ny, nx // 2 + 1)
        Transforms of the planes.
    planes : ndarray of float32, shape (10, n, nx)
        The rows of them that are wanted.
    """

    def __init__(self, shape: tuple[int, int], rows: int) -> None:
        ny, nx = shape
        self.tile = np.empty(shape, dtype=np.float32)
        self.images = np.empty((2, ny, nx // 2 + 1), dtype=np.complex64)
        self.psfs = np.empty((6, ny, nx // 2 + 1), dtype=np.complex64)
        self.spectra = np.empty((8, ny, nx // 2 + 1), dtype=np.complex64)
        self.planes = np.empty((10, rows, nx), dtype=np.float32)


def spectrum_of(plane: Real, out: Complex, *, workers: int = 1) -> Complex:
    """Transform a plane.

    Parameters
    ----------
    plane : ndarray of float32, shape (ny, nx)
    out : ndarray of complex64, shape (ny, nx // 2 + 1)
        Memory for the transform.
    workers : int
        Threads.
    """
    if workers > 1:
        out[:] = scipy.fft.rfft(plane, axis=1, workers=workers)
    else:
        np.fft.rfft(plane, axis=1, out=out)  # type: ignore[arg-type]
    return _in_place(out, workers)


def plane_of(spectrum: Complex, rows: slice, out: Real, *, workers: int = 1) -> Real:
    """Transform back, destroying the spectrum.

    Parameters
    ----------
    spectrum : ndarray of complex64, shape (ny, nx // 2 + 1)
    rows : slice
        Which rows are wanted.
    out : ndarray of float32, shape (n, nx)
        Memory for them; the rows that there are fewer of are left.
    workers : int
        Threads.

    Returns
    -------
    ndarray of float32, shape (n, nx)
    """
    columns = scipy.fft.ifft(spectrum, axis=0, overwrite_x=True, workers=workers)[rows]
    wanted = out[: len(columns)]
    if workers > 1:
        wanted[:] = scipy.fft.irfft(columns, n=out.shape[1], axis=1, workers=workers)
    else:
        np.fft.irfft(columns, n=out.shape[1], axis=1, out=wanted)  # type: ignore[arg-type] # the stubs know float64 alone
    return wanted


def subtract_tile(
    science: Complex,
    template: Complex,
    model: TileModel,
    rows: slice,
    space: Workspace,
    *,
    workers: int = 1,
) -> TilePlanes:
    """Subtract one tile.

    Parameters
    ----------
    science, template : ndarray of complex64, shape (ny, nx // 2 + 1)
        Transforms of the images in units of their own sky noise; periodic boundaries are assumed.
    model : TileModel
        PSFs, flux scale and shift.
    rows : slice
        Which rows of the planes are wanted.
    space : Workspace
        What is returned lies in it.
    workers : int
        Threads of the transforms.
    """
    shape = space.tile.shape[0], space.tile.shape[1]
    for i in range(3):
        transfer(model.science_psf[i], shape, space.psfs[i])
        transfer(model.template_psf[i], shape, space.psfs[3 + i])
    norm = np.zeros((shape[0], 3))
    trust = model.science_trust, model.template_trust
    ky, kx = _frequencies(shape)
    turns = np.array(model.shift_slope)
    _combine(
        science, template, space.psfs[:3], space.psfs[3:], np.float32(model.rho),
        np.array(model.log_beta_slope, dtype=np.float32),
        np.exp(1j * kx * model.shift[0]).astype(np.complex64),
        np.exp(1j * ky * model.shift[1]).astype(np.complex64),
        np.multiply.outer(turns[:, 0], kx).astype(np.float32),
        np.multiply.outer(turns[:, 1], ky).astype(np.float32),
        _filters(trust[0], shape), _filters(trust[1], shape),
        np.float32((SURE * trust[0].noise) ** 2),
        np.float32((SURE * model.rho * trust[1].noise) ** 2),
        shape[1] % 2 == 0, space.spectra, norm,
    )  # fmt: skip
    planes = [
        plane_of(spectrum, rows, out, workers=workers)
        for spectrum, out in zip(space.spectra, space.planes[:8], strict=True)
    ]
    total = norm.sum(axis=0) / (shape[0] * shape[1])
    return TilePlanes(
        (planes[0], planes[1], planes[2]), (planes[3], planes[4], planes[5]), planes[6], planes[7],
        (float(total[0]), float(total[1]), float(total[2])),
    )  # fmt: skip


def tile_kernels(model: TileModel, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return what science and template are convolved with at the tile's centre.

    Parameters
    ----------
    model : TileModel
    shape : tuple of int
        (ny, nx) of the grid to work on; a few PSF stamps wide.

    Returns
    -------
    ndarray of float64, shape (4, ny, nx)
        For D: science, template; for S: science, template. Centred on pixel (0, 0), for images in
        units of their own sky noise.
    """
    ky, kx = _frequencies(shape)
    k2 = (ky[:, None] ** 2 + kx[None, :] ** 2) / (2 * np.pi) ** 2
    pn = regularised(transfer(model.science_psf[0], shape), k2, model.science_trust)
    pr = regularised(transfer(model.template_psf[0], shape), k2, model.template_trust)
    phase = np.exp(1j * (kx[None, :] * model.shift[0] + ky[:, None] * model.shift[1]))
    a, b = model.rho * pr, pn
    root = np.sqrt(np.abs(a) ** 2 + np.abs(b) ** 2)
    matched = np.conj(a * b) / root
    kernels = np.stack([a / root, b * phase / root, matched * a / root, matched * b * phase / root])
    return np.asarray(scipy.fft.irfft2(kernels, s=shape, axes=(1, 2)), dtype=np.float64)


def difference_psf(model: TileModel, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return P_D (equation 14) at the tile's centre, centred on pixel (0, 0).

    For a D of the zero-frequency gain that it has with PSFs of unit sum. Light beyond their stamps
    is lost to its sum as it is to theirs: to norm it anew would make all fluxes fainter by that.
    """
    ky, kx = _frequencies(shape)
    k2 = (ky[:, None] ** 2 + kx[None, :] ** 2) / (2 * np.pi) ** 2
    pn = regularised(transfer(model.science_psf[0], shape), k2, model.science_trust)
    pr = regularised(transfer(model.template_psf[0], shape), k2, model.template_trust)
    a = model.rho * pr
    gain = np.sqrt(1 + model.rho**2) / model.rho
    psf = gain * a * pn / np.sqrt(np.abs(a) ** 2 + np.abs(pn) ** 2)
    return np.asarray(scipy.fft.irfft2(psf, s=shape), dtype=np.float64)


def _frequencies(shape: tuple[int, int]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Angular frequencies along y and x, radians per pixel."""
    ky = 2 * np.pi * np.asarray(np.fft.fftfreq(shape[0]), dtype=np.float64)
    return ky, 2 * np.pi * np.asarray(np.fft.rfftfreq(shape[1]), dtype=np.float64)


@lru_cache(maxsize=8)
def _filters(trust: Trust, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """What a PSF's transform is multiplied with, its odd part too, and what is added to it."""
    ky, kx = _frequencies(shape)
    k2 = (ky[:, None] ** 2 + kx[None, :] ** 2) / (2 * np.pi) ** 2
    passed = np.exp(-LN2 * np.minimum((k2 / trust.cutoff**2) ** 4, 100.0))
    odd = np.exp(-LN2 * np.minimum((k2 / trust.odd_cutoff**2) ** 4, 100.0))
    level = trust.floor + trust.rise * (1 - passed)
    return np.stack([passed, odd * passed, level]).astype(np.float32)


@numba.njit(nogil=True, fastmath=True, cache=True)
def _combine(  # type: ignore[no-untyped-def] # pragma: no cover
    n, r, pn, pr, rho, log_beta, phase_x, phase_y, turn_x, turn_y, known_n, known_r, sure_n, sure_r,
    even_width, out, norm,
):  # fmt: skip
    ny, nkx = n.shape
    one = np.float32(1)
    for i in range(ny):
        for j in range(nkx):
            even_n, odd_n = known_n[0, i, j], known_n[1, i, j]
            even_r, odd_r = rho * known_r[0, i, j], rho * known_r[1, i, j]
            b = complex(even_n * pn[0, i, j].real + known_n[2, i, j], odd_n * pn[0, i, j].imag)
            a = complex(
                even_r * pr[0, i, j].real + rho * known_r[2, i, j], odd_r * pr[0, i, j].imag
            )
            b2 = b.real**2 + b.imag**2
            a2 = a.real**2 + a.imag**2
            g = a2 + b2
            slope_n = b2 / (b2 + sure_n)
            slope_r = a2 / (a2 + sure_r)
            ig = one / np.sqrt(g)
            er = phase_y[i] * phase_x[j] * r[i, j]
            from_template = b * er * ig
            d = a * n[i, j] * ig - from_template
            q = np.conj(a * b) * ig
            # the first column, and the Nyquist column, stand for themselves alone
            single = j == 0 or (even_width and j == nkx - 1)
            weight = one if single else one + one
            out[0, i, j] = d
            out[3, i, j] = q * d
            out[6, i, j] = from_template
            out[7, i, j] = q * from_template
            norm[i, 0] += (q.real**2 + q.imag**2) * weight
            for axis in range(2):
                dn, dr = pn[1 + axis, i, j], pr[1 + axis, i, j]
                bd = slope_n * complex(even_n * dn.real, odd_n * dn.imag)
                ad = slope_r * complex(even_r * dr.real, odd_r * dr.imag) - log_beta[axis] * a
                angle = turn_x[axis, j] + turn_y[axis, i]
                turned = complex(-angle * b.imag, angle * b.real)
                half_g = (
                    a.real * ad.real + a.imag * ad.imag + b.real * bd.real + b.imag * bd.imag
                ) / g
                dd = (ad * n[i, j] - (bd + turned) * er) * ig - d * half_g
                qd = np.conj(ad * b + a * bd) * ig - q * half_g
                out[1 + axis, i, j] = dd
                out[4 + axis, i, j] = qd * d + q * dd
                norm[i, 1 + axis] += 2 * (q.real * qd.real + q.imag * qd.imag) * weight
