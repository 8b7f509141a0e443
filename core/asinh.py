"""The asinh scale in which Pan-STARRS stores its stacks, and the way back to linear fluxes.

A stored value ``t`` (after BSCALE and BZERO) stands for the flux

    flux = BOFFSET + 2 BSOFTEN sinh(t / a),    a = 2.5 log10(e) = 1.0857...

See "PS1 Stack images" and "PS1 DR2 caveats", section "FITS image format quirks"
(https://outerspace.stsci.edu/display/PANSTARRS/PS1+DR2+caveats): full sky cells are scaled, both
images and weights and each with cards of its own; masks, single-epoch warps and the cutouts of the
archive's cutout service are not. The presence of both cards tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header

from core.fitsfile import card

PER_MAGNITUDE = 2.5 * math.log10(math.e)
"""Magnitudes of a relative change of one, the ``a`` of asinh magnitudes (Lupton et al. 1999)."""

_PIECE = 1 << 20  # pixels


@dataclass(frozen=True)
class AsinhScale:
    """The two numbers of an asinh scale.

    Attributes
    ----------
    offset : float
        BOFFSET: the flux that is stored as zero.
    soften : float
        BSOFTEN, in units of flux: where the scale turns from linear to logarithmic.
    """

    offset: float
    soften: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.offset) and math.isfinite(self.soften) and self.soften > 0):
            raise ValueError(f"not an asinh scale: BOFFSET {self.offset}, BSOFTEN {self.soften}")

    @classmethod
    def from_header(cls, header: Header) -> AsinhScale | None:
        """Return the scale that a header states; None where the pixels are linear.

        Cards that cannot be a scale (no number, BSOFTEN not positive) count as absent.
        """
        values = card(header, "BOFFSET"), card(header, "BSOFTEN")
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) < 2 or not np.isfinite(numbers).all() or numbers[1] <= 0:
            return None
        return cls(float(numbers[0]), float(numbers[1]))

    def linear(self, stored: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return the fluxes of stored values; NaN stays NaN, what overflows becomes infinite.

        Parameters
        ----------
        stored : array_like of float
            As in the file, after BSCALE and BZERO.

        Returns
        -------
        ndarray of float32, same shape
        """
        values = np.asarray(stored)
        flux = np.empty(values.shape, dtype=np.float32)
        flat, out = values.reshape(-1), flux.reshape(-1)
        # In pieces: a sky cell has 40 million pixels, and they need double precision meanwhile.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, flat.size, _PIECE):
                part = slice(start, start + _PIECE)
                scaled = flat[part].astype(np.float64) / PER_MAGNITUDE
                out[part] = self.offset + 2 * self.soften * np.sinh(scaled)
        return flux

    def stored(self, linear: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the values under which fluxes are stored: the inverse of `linear`."""
        flux = np.asarray(linear, dtype=np.float64)
        return PER_MAGNITUDE * np.arcsinh((flux - self.offset) / (2 * self.soften))
