"""A simulated pair, prepared for an engine as the pipeline prepares it."""

from dataclasses import replace

from core.image import ExposureFacts, Image
from core.noise import measure_sky, with_noise
from core.psf import measure_psf
from core.simulate import PairSettings, SimulatedPair, simulate_pair
from core.stars import find_sources, select_saturated, select_stars
from core.subtraction.pair import Pair


def make_pair(settings: PairSettings) -> tuple[SimulatedPair, Pair]:
    """Simulate, and prepare as the pipeline does."""
    truth = simulate_pair(settings)
    images = []
    for data, mask, gain in (
        (truth.science, truth.science_mask, settings.gain),
        (truth.template, truth.template_mask, settings.gain * settings.template_depth),
    ):
        image = Image(data, mask, facts=ExposureFacts(gain=gain), name="simulated")
        sky = measure_sky(image)
        image = with_noise(image, sky)
        image = replace(image, data=image.data - sky.level)
        sources = find_sources(image.data, sky.rms, image.mask)
        stars, saturated = select_stars(sources), select_saturated(sources, image.mask)
        psf = measure_psf(image.data, sky.rms, image.bad, stars.sources, stars.fwhm, saturated)
        images.append((replace(image, psf=psf), stars))
    (science, stars), (template, _) = images
    return truth, Pair(science, template, science.psf.fwhm, template.psf.fwhm, stars)
