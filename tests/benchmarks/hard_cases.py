"""Pairs that a subtraction may fail on, and a few that it must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from core.image import MaskBit
from core.simulate import PairSettings, SimulatedPair, simulate_pair
from tests.benchmarks.other_sky import OtherSky, other_pair

Shape = tuple[int, int]


@dataclass(frozen=True)
class HardCase:
    """A kind of pair; ``make(shape, seed)`` draws one."""

    name: str
    make: Callable[[Shape, int], SimulatedPair]


def _simulated(name: str, **settings: object) -> HardCase:
    def make(shape: Shape, seed: int) -> SimulatedPair:
        return simulate_pair(PairSettings(shape=shape, seed=seed, **settings))  # type: ignore[arg-type]

    return HardCase(name, make)


def _other(name: str, **settings: object) -> HardCase:
    def make(shape: Shape, seed: int) -> SimulatedPair:
        return other_pair(OtherSky(shape=shape, seed=seed, **settings))  # type: ignore[arg-type]

    return HardCase(name, make)


def _bleeding(shape: Shape, seed: int) -> SimulatedPair:
    """The 12 brightest stars bleed over up to 400 rows of both images, three columns wide.

    The mask knows the full pixels.
    """
    pair = simulate_pair(PairSettings(shape=shape, seed=seed))
    rng = np.random.default_rng(seed)
    science, template = pair.science.copy(), pair.template.copy()
    masks = pair.science_mask.copy(), pair.template_mask.copy()
    full = pair.settings.saturation
    inside = (pair.stars["x"] > 1) & (pair.stars["x"] < shape[1] - 2)
    inside &= (pair.stars["y"] > 1) & (pair.stars["y"] < shape[0] - 2)
    stars = pair.stars[inside]
    for i in np.argsort(-np.asarray(stars["flux"]))[:12]:
        x, y = round(float(stars["x"][i])), round(float(stars["y"][i]))
        for data, mask in zip((science, template), masks, strict=True):
            for column in (x - 1, x, x + 1):
                reach = int(rng.uniform(60, 200)) if column == x else int(rng.uniform(10, 60))
                first, last = max(0, y - reach), min(shape[0], y + reach + 1)
                data[first:last, column] = full
                mask[first:last, column] |= np.uint16(MaskBit.SATURATED)
    return replace(
        pair, science=science, template=template, science_mask=masks[0], template_mask=masks[1]
    )


def _twenty_thousand(shape: Shape, seed: int) -> SimulatedPair:
    # power-law counts down to below the noise
    return simulate_pair(PairSettings(shape=shape, seed=seed, n_stars=20_000))


CASES = (
    _simulated("standard"),
    _other("other sky"),
    _other("other sky, seeing 2.6/3.4", science_fwhm=2.6, template_fwhm=3.4),
    _other("other sky, seeing 3.0/2.8", science_fwhm=3.0, template_fwhm=2.8),
    _simulated("saturated cores", saturation=3000.0),
    HardCase("bleed columns", _bleeding),
    _simulated("NaN regions", nan_regions=20, cosmic_rays=100),
    _simulated("template covers 60 %", template_coverage=0.6),
    _simulated("2 px misregistered", shift=(2.0, 1.0)),
    _simulated("2.4 px misregistered", shift=(-1.6, 1.8)),
    _simulated("cloud gradient 30 %", cloud_gradient=0.3),
    _simulated("10 stars", n_stars=10, star_bright=13.0, star_faint=18.0),
    _simulated("10 stars, most of them faint", n_stars=10),
    HardCase("20,000 stars", _twenty_thousand),
    _simulated("dominating galaxy", dominating_galaxy=True),
    _simulated("seeing 5.0/2.6", science_fwhm=5.0),
    _simulated("seeing 2.6/3.6", science_fwhm=2.6, template_fwhm=3.6),
    _simulated("seeing 3.0/2.8", science_fwhm=3.0, template_fwhm=2.8),
    _simulated("gaussian PSF", psf_profile="gaussian"),
    _simulated("negative transients", negative_fraction=0.5),
)
