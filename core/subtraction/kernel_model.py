"""What the matching kernel and the differential background look like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from core.polynomials import degrees

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KernelModel:
    """What the kernel and the differential background look like.

    Attributes
    ----------
    shape : tuple of int
        (ky, kx), odd.
    kernel_order, background_order, flux_order : int
        Polynomial orders of the kernel, of the background, and of the kernel's sum.
    flux_penalty : float
        Weight of the soft constraint that keeps the kernel's sum at ``flux_order``, in units of
        the mean diagonal of the normal matrix.
    ridge : float
        Tikhonov term on the kernel, in units of the mean diagonal; never on the background.
    knots : int
        1 for a free value in every pixel (the delta basis). Above, the kernel is a bicubic
        B-spline with a coefficient every so many pixels: a kernel that is wide against the seeing
        of the image it is applied to has no finer structure, and a ninth of the parameters is
        fitted in a hundredth of the time, and with a third of the noise.
    """

    shape: tuple[int, int]
    kernel_order: int
    background_order: int
    flux_order: int
    flux_penalty: float
    ridge: float
    knots: int = 1

    @property
    def lattice(self) -> tuple[int, int]:
        """Coefficients of a polynomial term along y and x: ``shape`` for the delta basis."""
        ny, nx = (2 * max(0, (n // 2 - (2 * self.knots - 1)) // self.knots) + 1 for n in self.shape)
        return self.shape if self.knots == 1 else (ny, nx)

    @property
    def n_pixels(self) -> int:
        """Kernel pixels."""
        return self.shape[0] * self.shape[1]

    @property
    def n_coefficients(self) -> int:
        """Coefficients of one polynomial term."""
        return self.lattice[0] * self.lattice[1]

    @property
    def n_kernel(self) -> int:
        """Kernel parameters."""
        return len(degrees(self.kernel_order)) * self.n_coefficients

    def pixels(self, coefficients: Float64) -> Float64:
        """Return the kernel's pixels, shape (..., ky, kx), of coefficients (..., ly, lx)."""
        if self.knots == 1:
            return coefficients
        down, along = (self._splines(axis) for axis in (0, 1))
        kernel: Float64 = np.einsum("vi,...ij,uj->...vu", down, coefficients, along)
        return kernel

    def in_coefficients(self, combinations: Float64) -> Float64:
        """Turn combinations of pixels, shape (..., ky, kx), into those of coefficients."""
        if self.knots == 1:
            return combinations
        down, along = (self._splines(axis) for axis in (0, 1))
        turned: Float64 = np.einsum("vi,...vu,uj->...ij", down, combinations, along)
        return turned

    def _splines(self, axis: int) -> Float64:
        """Return every coefficient's B-spline over the kernel's pixels, shape (k, l)."""
        half, reach = self.shape[axis] // 2, self.lattice[axis] // 2
        pixel = np.arange(-half, half + 1)[:, None]
        knot = self.knots * np.arange(-reach, reach + 1)
        return cubic_spline((pixel - knot) / self.knots)


def cubic_spline(x: npt.ArrayLike) -> Float64:
    """Return the cardinal cubic B-spline (de Boor 1978), of support -2 to 2 and integral 1."""
    d = np.abs(np.asarray(x, dtype=np.float64))
    inner = 2 / 3 - d**2 + 0.5 * d**3
    outer = np.maximum(2 - d, 0) ** 3 / 6
    return np.where(d < 1, inner, outer)


@lru_cache(maxsize=4)
def shared_noise(knots: int) -> Float64:
    """Return how the source's noise is shared between neighbouring coefficients.

    Noise in the convolved image adds its variance to its own share of the normal matrix and so
    pulls the kernel towards zero; this is the part that is taken out again.

    For the delta basis that would be ``V * identity``. Taking all of it out would leave the rough
    modes of the kernel, of which the stars know nothing, with no matrix at all, and would be wrong
    for an image that was resampled, whose noise has no rough modes. So only the smooth modes are
    freed: the identity is replaced by a Gaussian of 0.5 pixels over the kernel's pixels, whose
    eigenvalues fall from 1 for what is smooth to 0.3 for what is rough, inside the lower edge of
    the eigenvalues that the noise of a few hundred stamps has by chance (Marchenko and Pastur
    1967). A spline has no rough modes: what is shared is the correlation of its own profile.

    Returns
    -------
    ndarray of float64, shape (7, 7)
        What a coefficient shares with those up to 3 from it along y and x.
    """
    offset = np.arange(-3, 4)
    if knots == 1:
        profile = np.exp(-0.5 * offset**2 / 0.5**2)
        profile /= profile.sum()
    else:
        pixel = np.arange(-5 * knots, 5 * knots + 1) / knots
        profile = np.array([cubic_spline(pixel) @ cubic_spline(pixel - d) for d in offset])
    return np.asarray(np.outer(profile, profile))
