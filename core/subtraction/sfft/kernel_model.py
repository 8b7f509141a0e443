"""What the matching kernel and the differential background look like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.polynomials import degrees
from core.subtraction.sfft.kernel_basis import KernelBasis, delta_basis

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
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
    basis : KernelBasis, optional
        What the kernel is put together from; a free value in every pixel when not given.
    precision : ndarray of float64, shape (n_terms, n_coefficients), optional
        Inverse prior variance of every coefficient around zero
        (`core.subtraction.sfft.kernel_prior`).
    """

    shape: tuple[int, int]
    kernel_order: int
    background_order: int
    flux_order: int
    flux_penalty: float
    ridge: float
    basis: KernelBasis | None = None
    precision: Float64 | None = None

    @property
    def elements(self) -> KernelBasis:
        """The elements of the kernel."""
        return self.basis or delta_basis(self.shape)

    @property
    def n_coefficients(self) -> int:
        """Coefficients of one polynomial term."""
        return len(self.elements)

    @property
    def n_kernel(self) -> int:
        """Kernel parameters."""
        return len(degrees(self.kernel_order)) * self.n_coefficients
