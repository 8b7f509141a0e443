"""A pair, prepared for the engines as the pipeline prepares it: registered, noise, stars, PSFs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from core.exposure import TemplateFacts
from core.image import ExposureFacts, Image
from core.noise import measure_sky, sky_variance, with_noise
from core.psf import measure_psf
from core.simulate import SimulatedPair
from core.stars import find_sources, select_saturated, select_stars
from core.subtraction.pair import Pair
from core.templates.matching import to_science_grid
from core.templates.template import Template


def prepare(truth: SimulatedPair, *, threads: int = 2) -> tuple[Pair, tuple[int, int]]:
    """Prepare a pair, and say by how many pixels (dx, dy) the template was moved.

    Raises
    ------
    core.errors.ExposureError
        Where the pipeline would reject the exposure before any engine.
    """
    settings = truth.settings
    science = _image(truth.science, truth.science_mask, settings.gain, settings.saturation)
    sky = measure_sky(science)
    science = with_noise(science, sky)
    flat = science.data - sky.level
    sources = find_sources(flat, sky.rms, science.mask)
    stars = select_stars(sources)
    saturated = select_saturated(sources, science.mask)
    psf = measure_psf(flat, sky.rms, science.bad, stars.sources, stars.fwhm, saturated)
    science = replace(science, psf=psf, facts=science.facts.with_estimate(fwhm=psf.fwhm))
    gain = settings.gain * settings.template_depth
    template = Template(
        _image(truth.template, truth.template_mask, gain, settings.saturation),
        TemplateFacts("benchmark", "template"),
        on_grid=True,
    )
    gridded = to_science_grid(template, science, sources, threads=threads)
    pair = Pair(
        replace(science, data=flat), gridded.image, psf.fwhm, gridded.fwhm, stars,
        shift=gridded.shift, shift_rms=gridded.shift_rms, sky_variance=sky_variance(science, sky),
    )  # fmt: skip
    return pair, (round(gridded.shift[0]), round(gridded.shift[1]))


def _image(data: np.ndarray, mask: np.ndarray, gain: float, saturation: float) -> Image:
    missing = ~np.isfinite(data)
    pixels = np.where(missing, np.nanmedian(data), data).astype(np.float32)
    facts = ExposureFacts(gain=gain, saturation=saturation if np.isfinite(saturation) else None)
    return Image(pixels, mask.copy(), facts=facts, name="simulated")
