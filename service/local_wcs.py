"""The WCS of an exposure as a small stamp needs it: linear, around one pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = ["LocalWCS", "local_wcs"]

# Half the side of a stamp: the secants then fit the whole stamp, not only its centre.
_STEP = 15.0


@dataclass(frozen=True)
class LocalWCS:
    """A tangent-plane (gnomonic) WCS around one pixel.

    Attributes
    ----------
    ra, dec : float
        Of the centre of the pixel; ICRS, degrees.
    cd : tuple of float
        ``CD1_1, CD1_2, CD2_1, CD2_2``: degrees on the tangent plane per pixel.
    """

    ra: float
    dec: float
    cd: tuple[float, float, float, float]

    def position_error(self, x_err: float, y_err: float) -> tuple[float, float]:
        """Return the error of a position along right ascension (on the sky) and declination.

        ``x_err`` and ``y_err`` are 1-sigma and independent, in pixels; the result is in arcsec.
        """
        cd11, cd12, cd21, cd22 = self.cd
        along_ra = float(np.hypot(cd11 * x_err, cd12 * y_err))
        along_dec = float(np.hypot(cd21 * x_err, cd22 * y_err))
        return along_ra * 3600.0, along_dec * 3600.0


def local_wcs(wcs: WCS, x: Sequence[float], y: Sequence[float]) -> list[LocalWCS]:
    """Return the linear WCS around each of some pixels, whatever projection ``wcs`` has.

    Central differences over 30 pixels on the plane that touches the sky at the pixel. The error
    at the corner of a 63 pixel stamp is of the second order in the distortion: below 0.01 pixel
    for cameras like ZTF's.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        Celestial WCS, in any frame that astropy can transform to ICRS.
    x, y : sequence of float
        0-based pixel positions; they may lie outside the image.

    Raises
    ------
    ValueError
        If the WCS gives no sky position at one of them.
    """
    if len(x) == 0:
        return []
    centre_x, centre_y = np.asarray(x, float), np.asarray(y, float)
    offsets = np.array([(0, 0), (_STEP, 0), (-_STEP, 0), (0, _STEP), (0, -_STEP)])
    sky = wcs.pixel_to_world(
        (centre_x + offsets[:, :1]).ravel(), (centre_y + offsets[:, 1:]).ravel()
    ).icrs
    ra = np.asarray(sky.ra.deg).reshape(5, -1)
    dec = np.asarray(sky.dec.deg).reshape(5, -1)
    if not (np.isfinite(ra).all() and np.isfinite(dec).all()):
        raise ValueError("the WCS of the exposure gives no sky position for one of its candidates")
    xi, eta = _tangent_plane(ra, dec)
    columns = np.stack([xi[1] - xi[2], xi[3] - xi[4], eta[1] - eta[2], eta[3] - eta[4]], axis=1) / (
        2.0 * _STEP
    )
    return [
        LocalWCS(float(ra[0, i]), float(dec[0, i]), (float(a), float(b), float(c), float(d)))
        for i, (a, b, c, d) in enumerate(columns)
    ]


def _tangent_plane(
    ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Project on the plane that touches the sky at row 0 (Calabretta & Greisen 2002, 5.1.3)."""
    ra, dec = np.radians(ra), np.radians(dec)
    delta = ra - ra[0]
    sin0, cos0 = np.sin(dec[0]), np.cos(dec[0])
    cosine = sin0 * np.sin(dec) + cos0 * np.cos(dec) * np.cos(delta)
    xi = np.cos(dec) * np.sin(delta) / cosine
    eta = (cos0 * np.sin(dec) - sin0 * np.cos(dec) * np.cos(delta)) / cosine
    return np.degrees(xi), np.degrees(eta)
