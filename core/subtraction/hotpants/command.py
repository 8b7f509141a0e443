"""The command line of HOTPANTS, from what is known about a pair of images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Options = dict[str, tuple[str, ...]]

# Values in one string are told apart by spaces for these; everywhere else a space belongs to the
# value, which may be a file name.
SEVERAL_VALUES = frozenset({"ng", "gd", "rkw", "pca"})

FWHM_PER_SIGMA = 2.35
LEAST_SIGMA = 0.4
DOCUMENTED_DEGREES = (6, 4, 2)


@dataclass(frozen=True)
class KernelPlan:
    """The sizes and the basis that are asked of HOTPANTS.

    Attributes
    ----------
    half : int or None
        Half-width of the kernel, pixels (``-r``); None leaves HOTPANTS its default.
    substamp_half : int or None
        Half-width of the substamps that it is fitted on, pixels (``-rss``).
    gaussians : tuple of (int, float), or None
        Degree of the polynomial and width in pixels of every Gaussian of the basis (``-ng``).
    """

    half: int | None
    substamp_half: int | None
    gaussians: tuple[tuple[int, float], ...] | None

    def options(self) -> Options:
        """Return the options that say this."""
        options: Options = {}
        if self.half is not None:
            options["r"] = (str(self.half),)
        if self.substamp_half is not None:
            options["rss"] = (str(self.substamp_half),)
        if self.gaussians is not None:
            values = [str(len(self.gaussians))]
            for degree, sigma in self.gaussians:
                values += [str(degree), f"{sigma:.4f}"]
            options["ng"] = tuple(values)
        return options


def matching_gaussians(
    source_fwhm: float, target_fwhm: float, degrees: tuple[int, int, int] = DOCUMENTED_DEGREES
) -> tuple[tuple[int, float], ...]:
    """Choose the Gaussians of the kernel's basis from both seeings.

    Where the image that is convolved is clearly the sharper one, the rule of HOTPANTS's own
    documentation: widths of 0.5, 1 and 2 times ``sigma_match = sqrt(target² - source²) / 2.35``
    with polynomials of degree 6, 4 and 2. Where it is not, ``sigma_match`` vanishes or does not
    exist, and the widths are the program's defaults of 0.7, 1.5 and 3 pixels for a seeing of 3
    pixels, scaled to the wider seeing.

    Parameters
    ----------
    source_fwhm, target_fwhm : float
        Seeing of the image that is convolved and of the other, pixels.
    degrees : tuple of int
        Degrees of the polynomials, narrowest Gaussian first.
    """
    sigma = np.sqrt(max(target_fwhm**2 - source_fwhm**2, 0.0)) / FWHM_PER_SIGMA
    if has_matching_width(source_fwhm, target_fwhm):
        widths = (0.5 * sigma, sigma, 2.0 * sigma)
    else:
        ratio = max(source_fwhm, target_fwhm) / 3.0
        widths = (0.7 * ratio, 1.5 * ratio, 3.0 * ratio)
    return tuple(zip(degrees, widths, strict=True))


def has_matching_width(source_fwhm: float, target_fwhm: float) -> bool:
    """Return whether the rule of the documentation applies to these seeings, pixels."""
    sigma = np.sqrt(max(target_fwhm**2 - source_fwhm**2, 0.0)) / FWHM_PER_SIGMA
    return bool(sigma >= max(LEAST_SIGMA, 0.15 * target_fwhm))


def stamp_grid(
    shape: tuple[int, int], kernel_half: int, regions: tuple[int, int] = (1, 1)
) -> tuple[int, int]:
    """Choose how many stamps a region is divided into, ``(nsx, nsy)``.

    HOTPANTS keeps a margin of a kernel's width inside every stamp and takes one star at a time
    from each, so a small stamp is all margin and a large one wastes stars. Stamps of about six
    kernel widths were best where it was tried; on a small region they shrink to three before there
    are fewer than five a side.

    Parameters
    ----------
    shape : tuple of int
        (ny, nx) of the frame.
    kernel_half : int
        Pixels.
    regions : tuple of int
        Regions in x and y.
    """
    width = 2 * kernel_half + 1
    ny, nx = shape

    def count(length: float) -> int:
        least = max(1, min(5, int(length / (3 * width))))
        return int(np.clip(np.rint(length / (6 * width)), least, 60))

    return count(nx / regions[0]), count(ny / regions[1])


def supported_order(order: int, stamps: int) -> int:
    """Lower the order of the kernel's variation to what so many stamps of a region can hold."""
    return min(order, 2 if stamps >= 25 else 1 if stamps >= 9 else 0) if stamps < 100 else order


def with_extra(options: Options, extra: Mapping[str, Any] | None) -> Options:
    """Return the options with a caller's own put over them.

    Parameters
    ----------
    options : mapping of str to tuple of str
        Values by option name, without the dash.
    extra : mapping, optional
        Values by option name, with the dash or without. True is an option without a value; None
        or False takes an option away; a list or tuple gives several values.
    """
    merged = dict(options)
    for name, value in (extra or {}).items():
        key = str(name).lstrip("-")
        if not key:
            raise ValueError(f"{name!r} is not the name of a HOTPANTS option")
        if value is None or value is False:
            merged.pop(key, None)
        else:
            merged[key] = _values(key, value)
    return merged


def _values(name: str, value: Any) -> tuple[str, ...]:
    if value is True:
        return ()
    if isinstance(value, str):
        return tuple(value.split()) if name in SEVERAL_VALUES else (value,)
    if isinstance(value, Iterable):
        return tuple(_number(item) for item in value)
    return (_number(value),)


def _number(value: Any) -> str:
    """Write a number the way C reads it; numpy's own representation would name its type."""
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.9g}"
    return str(value)


def argument_list(executable: str, options: Options) -> list[str]:
    """Return the arguments of the process; no shell ever sees them."""
    arguments = [executable]
    for name, values in options.items():
        arguments.append(f"-{name}")
        arguments.extend(values)
    return arguments
