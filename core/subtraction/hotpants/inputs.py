"""What HOTPANTS is given for a pair of images: files, and the options that go with them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.image import Image
from core.subtraction.hotpants.command import (
    KernelPlan,
    Options,
    has_matching_width,
    matching_gaussians,
    stamp_grid,
    supported_order,
    with_extra,
)
from core.subtraction.hotpants.files import (
    FILL,
    NOISE_FILL,
    OUTPUTS,
    SCIENCE,
    SCIENCE_MASK,
    SCIENCE_NOISE,
    STARS,
    TEMPLATE,
    TEMPLATE_MASK,
    TEMPLATE_NOISE,
    write_image,
    write_noise,
    write_stars,
)
from core.subtraction.pair import Pair
from core.subtraction.sfft.kernel_choice import matching_sigma

log = logging.getLogger(__name__)

DEFAULT_KERNEL_HALF = 10  # of the program itself
DEFAULT_SUBSTAMP_HALF = 15
DEFAULT_BACKGROUND_ORDER = 1
DEGREES = (4, 2, 2)


@dataclass(frozen=True)
class HotpantsSettings:
    """Options of the engine; None lets it choose from the images.

    Attributes
    ----------
    executable : str
        A name to look up on ``PATH``, or a path.
    plan : KernelPlan, optional
        Sizes and basis of the kernel.
    kernel_order, background_order : int
        Orders of the polynomials in space (``-ko``, ``-bgo``), so that both may vary; lowered
        where a region has too few stamps to hold them.
    regions : tuple of int
        Independent regions in x and y; each has a kernel of its own.
    direction : str, optional
        ``t`` or ``i``: which image to convolve. The sharper one when None.
    image_gain, template_gain : float, optional
        Electrons per ADU, for an image without a noise map: the program then models its noise.
    deadline : float
        Seconds that the program may take.
    temporary : str, optional
        Where the run's own temporary folder is made.
    keep_in : str, optional
        A folder to work in instead, whose files are kept.
    extra : mapping
        Options of the program that override any chosen here (`with_extra`).
    report : callable, optional
        Handed every line that the program says.
    """

    executable: str = "hotpants"
    plan: KernelPlan | None = None
    kernel_order: int = 2
    background_order: int = 2
    regions: tuple[int, int] = (1, 1)
    direction: str | None = None
    image_gain: float | None = None
    template_gain: float | None = None
    deadline: float = 300.0
    temporary: str | None = None
    keep_in: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    report: Callable[[str], object] | None = None


def prepare(folder: Path, pair: Pair, settings: HotpantsSettings) -> Options:
    """Write the files that HOTPANTS reads, and return its options."""
    lowest, highest = write_image(folder, pair.science, (SCIENCE, SCIENCE_MASK))
    template_lowest, template_highest = write_image(
        folder, pair.template, (TEMPLATE, TEMPLATE_MASK)
    )
    direction = settings.direction or _direction(pair)
    plan = settings.plan or _plan(pair, direction)
    options: Options = {
        "inim": (SCIENCE,),
        "tmplim": (TEMPLATE,),
        **OUTPUTS,
        "imi": (SCIENCE_MASK,),
        "tmi": (TEMPLATE_MASK,),
        # All good pixels are valid: the defaults drop a sky of zero and stars above 25,000 ADU.
        **_valid_range("i", lowest, highest),
        **_valid_range("t", template_lowest, template_highest),
    }
    options |= _noise_options(folder, "i", SCIENCE_NOISE, pair.science, settings.image_gain)
    options |= _noise_options(folder, "t", TEMPLATE_NOISE, pair.template, settings.template_gain)
    grid = stamp_grid(pair.shape, plan.half or DEFAULT_KERNEL_HALF, settings.regions)
    options |= {
        "c": (direction,),
        "n": ("i",),  # science ADU, whichever image is convolved
        "ko": (str(supported_order(settings.kernel_order, grid[0] * grid[1])),),
        "bgo": (str(supported_order(settings.background_order, grid[0] * grid[1])),),
        "nrx": (str(settings.regions[0]),),
        "nry": (str(settings.regions[1]),),
        "nsx": (str(grid[0]),),
        "nsy": (str(grid[1]),),
        "fi": (f"{FILL:g}",),
        "fin": (f"{NOISE_FILL:g}",),
    }
    options |= plan.options()
    if pair.stars is not None and write_stars(folder, pair.stars, pair.shape):
        options["ssf"] = (STARS,)
    return with_extra(options, settings.extra)


def _direction(pair: Pair) -> str:
    """Convolve the sharper image: nothing is ever deconvolved."""
    if pair.template_fwhm > 1.02 * pair.science_fwhm:
        log.info(
            "the template (FWHM %.2f) is blurrier than the science image (%.2f): HOTPANTS "
            "convolves the science image", pair.template_fwhm, pair.science_fwhm,
        )  # fmt: skip
        return "i"
    return "t"


def _plan(pair: Pair, direction: str) -> KernelPlan:
    """Choose sizes and basis from both seeings.

    The documented kernel of 3 times the seeing, substamps of 4 times and polynomials of degree 6,
    4 and 2 leave a mean chi² of 1.19 on the stars of simulated pairs of 1024² pixels, and 8 false
    detections a pair: there are more coefficients than so many stamps can hold. A kernel of the
    matching's own size, substamps of 2.5 times the seeing and degrees 4, 2 and 2 leave 1.07 and 5.
    """
    source, target = pair.template_fwhm, pair.science_fwhm
    if direction == "i":
        source, target = target, source
    if not has_matching_width(source, target):
        log.info(
            "the seeing of both images is alike (%.2f and %.2f pixels): HOTPANTS gets Gaussians "
            "scaled to the seeing, not to the difference", source, target,
        )  # fmt: skip
    half = int(np.clip(np.ceil(4.0 * matching_sigma(source, target) + 2.0), 5, 15))
    substamp = max(half + 1, int(np.ceil(2.5 * target)))
    return KernelPlan(half, substamp, matching_gaussians(source, target, DEGREES))


def _valid_range(image: str, lowest: float, highest: float) -> Options:
    """Say that everything between the good pixels' extremes is valid, with some room."""
    room = 1.0 + 0.01 * (highest - lowest)
    return {f"{image}l": (f"{lowest - room:.9g}",), f"{image}u": (f"{highest + room:.9g}",)}


def _noise_options(
    folder: Path, letter: str, name: str, image: Image, gain: float | None
) -> Options:
    """Give a noise map, or the gain from which the program models one."""
    options: Options = {} if not gain else {f"{letter}g": (f"{gain:.9g}",)}
    if image.variance is not None or (letter == "t" and not gain):
        write_noise(folder, name, image.variance, image)
        options[f"{letter}ni"] = (name,)
    return options


def whole_number(options: Options, name: str, default: int) -> int:
    """Return an option's value, or the program's default where it is not given."""
    values = options.get(name)
    return int(float(values[0])) if values else default
