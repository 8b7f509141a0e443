"""From an exposure to its candidates: the main job, top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.exposure import Exposure, ExposureResult
from core.templates import TemplateProvider


@dataclass(frozen=True)
class PipelineSettings:
    """What an operator may choose about the science.

    Attributes
    ----------
    engines : sequence of str
        The ladder of engines; the next is tried when one is not trustworthy.
    threshold : float
        Detection threshold on the matched-filter S/N map, sigma.
    max_pixels : int
        Larger images are refused, from the header, before any allocation.
    min_overlap : float
        The least fraction of the exposure that a template must cover.
    max_candidates : int
        More candidates than this reject the exposure: a bad subtraction must not flood the topic.
    cutout_size : int
        Side of the cutouts, pixels, odd.
    aligned : bool
        Science and template are already on one pixel grid; no WCS is needed.
    keep_difference : bool
        Return the difference planes with the result.
    threads : int
        Threads that compiled and BLAS code may use.
    """

    engines: Sequence[str] = ("sfft",)
    threshold: float = 5.0
    max_pixels: int = 20_000 * 20_000
    min_overlap: float = 0.3
    max_candidates: int = 2000
    cutout_size: int = 63
    aligned: bool = False
    keep_difference: bool = False
    threads: int = 1


def process(
    exposure: Exposure, templates: TemplateProvider, settings: PipelineSettings
) -> ExposureResult:
    """Find what changed in one exposure.

    Errors of the `core.errors` family become the result's outcome, reason and stage; any other
    exception is a defect and propagates.

    Parameters
    ----------
    exposure : Exposure
        What the event announced.
    templates : TemplateProvider
        Where to look for a template.
    settings : PipelineSettings
        What the operator chose.

    Returns
    -------
    ExposureResult
        The candidates with their cutouts, or why there are none.
    """
    raise NotImplementedError
