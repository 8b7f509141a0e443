"""What every engine is given: two images on one pixel grid, and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass

from core.image import FloatImage, Image
from core.stars import StarList


@dataclass(frozen=True)
class Pair:
    """A science image and a template on the same pixel grid.

    Attributes
    ----------
    science : Image
        With a variance.
    template : Image
        On the grid of ``science``; a variance of None means noiseless.
    science_fwhm, template_fwhm : float
        Median seeing of each, pixels.
    stars : StarList or None
        Stars of the science image; None lets the engine look for informative pixels itself.
    shift : tuple of float
        Residual (dx, dy) of the template against the science image, pixels.
    sky_variance : ndarray of float32, shape (ny, nx), or None
        Variance of the science image without the photon noise of its sources. With it, and a gain,
        the sources' noise is taken from the matched template, and so counted once; without it the
        science image's own variance is used as it is.
    shift_rms : float
        Scatter around it that is not photon noise, pixels per axis: the astrometric term.
    """

    science: Image
    template: Image
    science_fwhm: float
    template_fwhm: float
    stars: StarList | None = None
    shift: tuple[float, float] = (0.0, 0.0)
    shift_rms: float = 0.0
    sky_variance: FloatImage | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        return self.science.shape
