"""What a matching kernel is put together from: single pixels, splines, or both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class KernelBasis:
    """The elements of a kernel; each is one pixel, or one profile common to all that are not.

    Attributes
    ----------
    shape : tuple of int
        (ky, kx) of the kernel, odd.
    offset : ndarray of int64, shape (n, 2)
        (dy, dx) of every element's centre from the kernel's.
    smooth : ndarray of bool, shape (n,)
        Whether an element is the profile rather than a pixel.
    profile : ndarray of float64, shape (odd,)
        The profile along either axis.
    """

    shape: tuple[int, int]
    offset: Integers
    smooth: npt.NDArray[np.bool_]
    profile: Float64

    def __len__(self) -> int:
        return len(self.offset)

    @cached_property
    def matrix(self) -> Float64:
        """Every element's pixels, shape (n, ky, kx)."""
        ky, kx = self.shape
        reach = len(self.profile) // 2
        blob = np.outer(self.profile, self.profile)
        padded = np.zeros((len(self), ky + 2 * reach, kx + 2 * reach))
        for plane, (dy, dx), smooth in zip(padded, self.offset, self.smooth, strict=True):
            y, x = ky // 2 + reach + dy, kx // 2 + reach + dx
            if smooth:
                plane[y - reach : y + reach + 1, x - reach : x + reach + 1] = blob
            else:
                plane[y, x] = 1.0
        return padded[:, reach : reach + ky, reach : reach + kx]

    def pixels(self, coefficients: Float64) -> Float64:
        """Return the kernel's pixels, shape (..., ky, kx), of coefficients (..., n)."""
        return np.tensordot(coefficients, self.matrix, axes=1)

    def in_coefficients(self, combinations: Float64) -> Float64:
        """Turn combinations of pixels, shape (..., ky, kx), into those of coefficients (..., n)."""
        return np.tensordot(combinations, self.matrix, axes=((-2, -1), (1, 2)))

    @cached_property
    def shared_noise(self) -> Float64:
        """Return how much of the source's noise any two elements share, shape (n, n).

        Noise in the convolved image adds ``V * identity`` over the kernel's pixels to the normal
        matrix, and so pulls the kernel towards zero; this is the part that is taken out again.
        Taking out all of it would leave the rough modes of the kernel, of which the stars know
        nothing, with no matrix at all, and would be wrong for an image that was resampled, whose
        noise has no rough modes. So only the smooth modes are freed: the identity is replaced by a
        Gaussian of 0.5 pixels over the kernel's pixels, whose eigenvalues fall from 1 for what is
        smooth to 0.3 for what is rough, inside the lower edge of the eigenvalues that the noise of
        a few hundred stamps has by chance (Marchenko and Pastur 1967).
        """
        y, x = np.mgrid[: self.shape[0], : self.shape[1]].reshape(2, -1)
        distance2 = (x[:, None] - x[None, :]) ** 2 + (y[:, None] - y[None, :]) ** 2
        blurred = np.exp(-2.0 * distance2) / np.exp(-2.0 * np.arange(-9, 10) ** 2).sum() ** 2
        matrix = self.matrix.reshape(len(self), -1)
        return np.asarray(matrix @ blurred @ matrix.T)


@lru_cache(maxsize=4)
def delta_basis(shape: tuple[int, int]) -> KernelBasis:
    """Return a free value for every pixel (Bramich 2008)."""
    ny, nx = shape[0] // 2, shape[1] // 2
    offset = np.mgrid[-ny : ny + 1, -nx : nx + 1].reshape(2, -1).T
    return KernelBasis(
        shape, np.ascontiguousarray(offset), np.zeros(len(offset), dtype=bool), np.ones(1)
    )


@lru_cache(maxsize=4)
def spline_basis(shape: tuple[int, int], knots: int) -> KernelBasis:
    """Return bicubic B-splines, one every ``knots`` pixels.

    A kernel that is wide against the seeing of the image it is applied to has no finer structure;
    a fraction of the parameters is fitted in a fraction of the time, and with less noise.
    """
    along = [_lattice(n // 2 - (2 * knots - 1), knots) for n in shape]
    offset = np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, 2)
    profile = cubic_spline(np.arange(1 - 2 * knots, 2 * knots) / knots)
    return KernelBasis(shape, offset, np.ones(len(offset), dtype=bool), profile)


@lru_cache(maxsize=4)
def cored_basis(shape: tuple[int, int], core: int) -> KernelBasis:
    """Return single pixels within ``core`` of the centre, and bilinear splines around them.

    The rim of a kernel is faint and smooth: a coefficient every second pixel is what it needs, and
    the noise of free pixels there is what leaves rings around bright stars.
    """
    deltas = delta_basis(shape).offset
    inside = np.abs(deltas).max(axis=1) <= core
    knots = [np.arange(-(n // 2 - 1), n // 2, 2) for n in shape]
    lattice = np.stack(np.meshgrid(*knots, indexing="ij"), axis=-1).reshape(-1, 2)
    # a hat within the core is a sum of its pixels
    lattice = lattice[np.abs(lattice).max(axis=1) > core - 1]
    offset = np.concatenate([deltas[inside], lattice])
    smooth = np.arange(len(offset)) >= inside.sum()
    return KernelBasis(shape, offset, smooth, np.array([0.5, 1.0, 0.5]))


def _lattice(reach: int, step: int) -> Integers:
    count = max(0, reach // step)
    return step * np.arange(-count, count + 1)


def cubic_spline(x: npt.ArrayLike) -> Float64:
    """Return the cardinal cubic B-spline (de Boor 1978), of support -2 to 2 and integral 1."""
    d = np.abs(np.asarray(x, dtype=np.float64))
    inner = 2 / 3 - d**2 + 0.5 * d**3
    outer = np.maximum(2 - d, 0) ** 3 / 6
    return np.where(d < 1, inner, outer)
