"""A position-dependent point spread function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PSFModel:
    """PSF stamps whose pixels vary over the frame as a polynomial.

    Attributes
    ----------
    coefficients : ndarray of float32, shape (n_terms, size, size)
        One stamp per polynomial term, terms ordered as `polynomial_terms` gives them.
    order : int
        Order of the polynomial.
    shape : tuple of int
        (ny, nx) of the frame that it was measured on.
    fwhm : float
        Median full width at half maximum, pixels.
    n_stars : int
        Stars that it was measured from; 0 for an analytic one.
    """

    coefficients: npt.NDArray[np.float32]
    order: int
    shape: tuple[int, int]
    fwhm: float
    n_stars: int = 0

    def at(self, x: float, y: float) -> npt.NDArray[np.float32]:
        """Return the PSF at a place: float32, shape (size, size), unit sum, centred."""
        raise NotImplementedError
