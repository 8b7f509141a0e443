"""Which sources the matching and the verdict rest on: those that both images show."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import numpy.typing as npt
import sep

from core.stars import SourceList, StarList, find_sources
from core.subtraction.pair import Pair
from core.subtraction.zogy.images import KnownImage
from core.subtraction.zogy.matching import Matching
from core.subtraction.zogy.psf_fit import PLENTY

Float64 = npt.NDArray[np.float64]
CERTAIN = 20.0  # sigma, of a source that a star list may be filled up with
SAME_SOURCE = 3.0  # pixels


def stars_of(pair: Pair) -> StarList:
    """Return the star list of a pair; an empty one where it has none."""
    if pair.stars is not None:
        return pair.stars
    nothing = np.zeros(0)
    return StarList(SourceList(*(nothing,) * 7, np.zeros(0, dtype=bool)), float("nan"))


def constant_sources(pair: Pair, template: KnownImage) -> tuple[SourceList, bool]:
    """Return the stars that the template has, too, and whether they are many.

    Where they are few, what else the template shows is added, of whatever shape: to compare fluxes
    a galaxy does as well as a star.
    """
    stars = stars_of(pair).sources
    flux, error = _aperture_fluxes(template, stars, pair.shift)
    stars = stars.select(flux > 5 * error)
    if len(stars) >= PLENTY or template.variance is None:
        return stars, len(stars) >= PLENTY
    found = find_sources(template.data, np.sqrt(template.variance), template.mask)
    found = found.select(found.clean & (found.snr > CERTAIN))
    if len(found) == 0 or len(stars) == 0:
        return found if len(found) else stars, False
    known_x, known_y = stars.x + pair.shift[0], stars.y + pair.shift[1]
    apart = np.hypot(found.x[:, None] - known_x, found.y[:, None] - known_y).min(axis=1)
    return _joined(stars, found.select(apart > SAME_SOURCE)), False


def unchanged_stars(
    pair: Pair, science: KnownImage, template: KnownImage, matching: Matching
) -> StarList:
    """Return the stars of which the template has at least half the light: not what is new."""
    stars = stars_of(pair)
    ours, _ = _aperture_fluxes(science, stars.sources, (0.0, 0.0))
    theirs, _ = _aperture_fluxes(template, stars.sources, pair.shift)
    scale = matching.flux_scale_at(stars.sources.x, stars.sources.y)
    return replace(stars, sources=stars.sources.select(theirs * scale > 0.5 * ours))


def _aperture_fluxes(
    image: KnownImage, stars: SourceList, shift: tuple[float, float]
) -> tuple[Float64, Float64]:
    """Flux within one seeing of every star, and its error."""
    if len(stars) == 0:
        return np.zeros(0), np.zeros(0)
    flux, error, _ = sep.sum_circle(
        image.data, stars.x + shift[0], stars.y + shift[1], image.psf.fwhm,
        var=0.0 if image.variance is None else image.variance, mask=image.bad,
    )  # fmt: skip
    return flux, error


def _joined(first: SourceList, second: SourceList) -> SourceList:
    """Put two lists of sources behind each other."""
    columns = zip(astuple(first), astuple(second), strict=True)
    return SourceList(*(np.concatenate(pair) for pair in columns))
