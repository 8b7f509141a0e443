"""What a HiPS says about itself in its file ``properties``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from astropy.coordinates import ICRS, BarycentricMeanEcliptic, Galactic

from core.celestial import change_frame
from core.errors import NoTemplate
from core.tangent import FloatArray, unit_vectors
from core.templates.epochs import Epochs
from core.templates.hips.healpix import pixel_size

_FRAMES = {"equatorial": "equatorial", "c": "equatorial", "galactic": "galactic", "g": "galactic"}
_FRAMES |= {"ecliptic": "ecliptic", "e": "ecliptic"}
_MOST_ORDERS = 24  # of tiles; finer pixels than a milliarcsecond are a mistake
_SLACK = 1.02  # a HiPS pixel may be so much larger than the exposure's
_WHOLE = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class HipsProperties:
    """The facts of a HiPS that matter for reading it; see IVOA HiPS 1.0, section 4.4.1.

    Attributes
    ----------
    title : str
        Its identifier, or title, for messages.
    order : int
        The deepest order of its tiles.
    order_min : int
        The lowest one; 3 where the file does not say, which every HiPS has.
    frame : str
        ``equatorial``, ``galactic`` or ``ecliptic``.
    tile_width : int
        Pixels.
    formats : tuple of str
        Of its tiles, lower case.
    dataproduct : str
        ``image`` is what can be a template.
    sky_fraction : float or None
        Part of the sky that it covers.
    survey_pixel : float or None
        Pixel size of the images that it was made of, degrees (``s_pixel_scale``).
    release : str
        When it was last changed.
    epochs : Epochs or None
        Of the images that it was made of (``t_min`` and ``t_max``, MJD); None unless both are
        stated.
    """

    title: str
    order: int
    order_min: int = 0
    frame: str = "equatorial"
    tile_width: int = 512
    formats: tuple[str, ...] = ("fits",)
    dataproduct: str = "image"
    sky_fraction: float | None = None
    survey_pixel: float | None = None
    release: str = ""
    epochs: Epochs | None = None

    @classmethod
    def parse(cls, text: str, where: str) -> HipsProperties:
        """Read the file; the keywords of HiPS before 1.0 are understood too.

        Parameters
        ----------
        text : str
            Its content.
        where : str
            For messages.

        Raises
        ------
        NoTemplate
            If this HiPS cannot give templates: no images, no FITS tiles, or a frame that is not
            one of the sky; or if the file makes no sense.
        """
        said = _pairs(text)
        title = said.get("creator_did") or said.get("obs_title") or where
        order = _whole(said.get("hips_order", said.get("maxorder")), "hips_order", where)
        width = _whole(said.get("hips_tile_width", "512"), "hips_tile_width", where)
        frame = said.get("hips_frame", said.get("coordsys", "equatorial")).lower()
        formats = tuple(
            said.get("hips_tile_format", said.get("format", "")).lower().replace(",", " ").split()
        )
        product = said.get("dataproduct_type", "image").lower()
        if product != "image":
            raise NoTemplate(f"the HiPS {title} holds {product}s, not images; choose another one")
        if "fits" not in formats:
            raise NoTemplate(
                f"the HiPS {title} has only pictures ({', '.join(formats) or 'no format'}), no "
                "FITS tiles: pixels without fluxes cannot be a template; choose another one"
            )
        if frame not in _FRAMES:
            raise NoTemplate(f"{where}: the frame {frame!r} is none of the sky")
        if width & (width - 1) or not 8 <= width <= 8192:
            raise NoTemplate(f"{where}: tiles of {width} pixels are not possible")
        if not 0 <= order <= _MOST_ORDERS:
            raise NoTemplate(f"{where}: the order {order} is not possible")
        lowest = _whole(said.get("hips_order_min", "3"), "hips_order_min", where)
        return cls(
            title=title,
            order=order,
            order_min=min(max(lowest, 0), order),
            frame=_FRAMES[frame],
            tile_width=width,
            formats=formats,
            dataproduct=product,
            sky_fraction=_number(said.get("moc_sky_fraction")),
            survey_pixel=_number(said.get("s_pixel_scale")),
            release=said.get("hips_release_date", ""),
            epochs=_epochs(_number(said.get("t_min")), _number(said.get("t_max"))),
        )

    def pixel(self, order: int) -> float:
        """Return the size of a pixel of some order, degrees."""
        return pixel_size(order, self.tile_width)

    def order_for(self, scale: float) -> int:
        """Return the lowest order whose pixels are not coarser than those of an exposure.

        Parameters
        ----------
        scale : float
            Pixel size of the exposure, degrees.
        """
        for order in range(self.order_min, self.order):
            if self.pixel(order) <= _SLACK * scale:
                return order
        return self.order

    @property
    def rotation(self) -> FloatArray:
        """Matrix from ICRS directions to those of the frame, shape (3, 3)."""
        if self.frame == "equatorial":
            return np.eye(3)
        frame = Galactic() if self.frame == "galactic" else BarycentricMeanEcliptic()
        lon, lat = change_frame(
            np.array([0.0, 90.0, 0.0]), np.array([0.0, 0.0, 90.0]), ICRS(), frame
        )
        return unit_vectors(lon, lat).T


def _pairs(text: str) -> Mapping[str, str]:
    pairs = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith("#") and value.strip():
            pairs[key.strip().lower()] = value.strip()
    return pairs


def _whole(text: str | None, keyword: str, where: str) -> int:
    if text is None or not _WHOLE.fullmatch(text):
        raise NoTemplate(f"{where}: {keyword} is {text or 'missing'}; not the properties of a HiPS")
    return int(text)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if np.isfinite(value) and value > 0 else None


def _epochs(first: float | None, last: float | None) -> Epochs | None:
    if first is None or last is None or last < first:
        return None
    return Epochs(first, last)
