"""HOTPANTS: the user's own program (Becker 2015, ascl:1504.004) as an engine.

Images, masks and noise maps go to it as files, its command line is built from what is known of
the pair (`core.subtraction.hotpants.inputs`), and what it writes comes back as a `Difference`
(`core.subtraction.hotpants.finish`). The program is neither part of this package nor installed by
it.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from core.errors import SubtractionFailed
from core.subtraction.convolve import compiled_threads
from core.subtraction.difference import Difference
from core.subtraction.hotpants.command import Options, argument_list
from core.subtraction.hotpants.files import (
    Planes,
    kernel_sums,
    read_planes,
    remove_outputs,
    working_folder,
)
from core.subtraction.hotpants.finish import HotpantsResult, finish
from core.subtraction.hotpants.guard import Guard
from core.subtraction.hotpants.inputs import (
    DEFAULT_KERNEL_HALF,
    DEFAULT_SUBSTAMP_HALF,
    HotpantsSettings,
    prepare,
    whole_number,
)
from core.subtraction.hotpants.kernel import HotpantsKernel, read_kernel
from core.subtraction.hotpants.process import find_program, last_words, run_program
from core.subtraction.pair import Pair

__all__ = ["HotpantsResult", "HotpantsSettings", "subtract"]

log = logging.getLogger(__name__)


def subtract(
    pair: Pair, settings: HotpantsSettings | None = None, *, threads: int = 1
) -> Difference:
    """Match and subtract by running HOTPANTS.

    Of a pair with noise maps only the matched image is taken from the program, and the noise is
    propagated as for every engine: the variance of the convolved image goes through the squared
    local kernel. The program's own noise plane is the same by default, but not with ``-convvar``,
    and lacks the astrometric term. It is used where an image has no noise map, or where its kernel
    is not known (several regions convolved in different directions, another photometric system
    asked for in ``extra``).

    Parameters
    ----------
    pair : Pair
        Both images on one grid.
    settings : HotpantsSettings, optional
        Options.
    threads : int
        Threads for our compiled loops; HOTPANTS itself has one.

    Returns
    -------
    Difference
        In science ADU. Pixels to which the program gave no value are masked and hold zero; their
        noise is the image's.

    Raises
    ------
    core.errors.SubtractionFailed
        If the program is not installed, fails, is late, or finds no kernel.
    """
    settings = settings or HotpantsSettings()
    started = time.perf_counter()
    program = find_program(settings.executable)
    if pair.template.shape != pair.shape:
        raise SubtractionFailed(
            f"science image and template differ in shape: {pair.shape}, {pair.template.shape}"
        )
    with ExitStack() as open_things:
        try:
            folder = open_things.enter_context(working_folder(settings.temporary, settings.keep_in))
            options = prepare(folder, pair, settings)
            remove_outputs(folder, options)
            guard = open_things.enter_context(Guard(None if settings.keep_in else folder))
        except OSError as error:
            raise SubtractionFailed(f"the files for HOTPANTS cannot be written: {error}") from error
        arguments = argument_list(program, options)
        messages = run_program(arguments, folder, settings.deadline, settings.report, guard.watch)
        planes = read_planes(folder, options, pair.shape)
        kernel = _read_kernel(folder, options, pair.shape)
    _check_fitted(planes, messages)
    with compiled_threads(threads):
        return finish(pair, options, planes, kernel, threads, started)


def _read_kernel(folder: Path, options: Options, shape: tuple[int, int]) -> HotpantsKernel | None:
    half = whole_number(options, "r", DEFAULT_KERNEL_HALF)
    substamp = whole_number(options, "rss", DEFAULT_SUBSTAMP_HALF)
    if "oki" not in options or "pca" in options or "ki" in options:
        return None
    try:
        return read_kernel(str(folder / options["oki"][0]), shape, half, substamp)
    except (OSError, KeyError, ValueError) as error:
        log.warning("the kernel that HOTPANTS wrote cannot be read: %s", error)
        return None


def _check_fitted(planes: Planes, messages: list[str]) -> None:
    """Find out whether there was a fit: the program calls it a success when there was none."""
    sums = kernel_sums(planes.header)
    if not sums or not planes.valid.any():
        raise SubtractionFailed(
            "HOTPANTS fitted no kernel: it found no star it could use, or the masks leave it "
            f"none; its last words: {last_words(messages)}"
        )
    if not all(np.isfinite(value) and value > 0 for value in sums):
        raise SubtractionFailed(
            f"HOTPANTS found a kernel of sum {', '.join(f'{value:g}' for value in sums)}: the "
            "images do not show the same sky, or one of them is not photometric"
        )
