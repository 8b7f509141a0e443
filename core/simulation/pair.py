"""A science image and its template, with the truth about both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from astropy.table import Table

from core.image import FloatImage, MaskBit, MaskImage
from core.simulation.detector import Detector, SkyLevel, draw_bad_columns
from core.simulation.injection import (
    NoiseBudget,
    draw_places,
    draw_places_on_galaxies,
    keep_out_map,
)
from core.simulation.psf import FloatArray, Profile, SimulatedPSF
from core.simulation.render import add_galaxies, add_stars
from core.simulation.sky import (
    Galaxies,
    Stars,
    draw_galaxies,
    draw_stars,
    join_galaxies,
)


@dataclass(frozen=True)
class PairSettings:
    """What kind of pair to simulate; everything that is random follows from ``seed``.

    Attributes
    ----------
    shape : tuple of int
        (ny, nx) of both images.
    seed : int
        Determines the sky, the optics, the transients and the noise.
    science_fwhm, template_fwhm : float
        Mean FWHM of the PSFs, pixels.
    fwhm_variation : float
        Largest relative change of the science FWHM over the field; the template's is half of it.
    ellipticity : float
        Largest ellipticity of the PSFs.
    psf_profile : str
        ``moffat`` or ``gaussian``.
    moffat_beta : float
        Moffat exponent.
    n_stars, n_galaxies : int or None
        How many over the frame; from the densities when None.
    star_density, galaxy_density : float
        Per 10⁶ pixels.
    star_bright, star_faint, star_slope : float
        Magnitude limits and the slope of the star counts.
    n_transients : int
        Point sources only in the science image, plus those of ``negative_fraction`` that are only
        in the template.
    snr_range : tuple of float
        Their optimal signal-to-noise ratio is uniform between these (see `NoiseBudget.snr`).
    host_fraction : float
        Part of them that sits on galaxies.
    negative_fraction : float
        Part of them that is missing in the science image instead.
    gain, read_noise, saturation : float
        Electrons per ADU, electrons, ADU; of one exposure.
    sky, template_sky : float
        Sky levels, ADU per pixel.
    sky_gradient : float
        Change of the science sky over the frame along each axis, relative.
    zero_point, template_zero_point : float
        AB magnitude of a source of 1 ADU.
    template_depth : int
        Number of exposures averaged in the template.
    cloud_gradient : float
        Relative change of the science transparency from one side of the frame to the other.
    shift : tuple of float
        (dx, dy): sources lie at x + dx, y + dy on the template.
    bad_columns, cosmic_rays : int
        Defects of the science image.
    template_coverage : float
        Part of the frame, from the left, that the template covers; NaN beyond it.
    nan_regions : int
        Rectangles of the science image, about 4 % of a side, that are NaN.
    dominating_galaxy : bool
        Put one galaxy of a tenth of the frame's size into the middle.
    """

    shape: tuple[int, int] = (1024, 1024)
    seed: int = 1
    science_fwhm: float = 3.6
    template_fwhm: float = 2.6
    fwhm_variation: float = 0.1
    ellipticity: float = 0.03
    psf_profile: Profile = "moffat"
    moffat_beta: float = 3.5
    n_stars: int | None = None
    n_galaxies: int | None = None
    star_density: float = 1200.0
    galaxy_density: float = 250.0
    star_bright: float = 10.5
    star_faint: float = 22.0
    star_slope: float = 0.25
    n_transients: int = 200
    snr_range: tuple[float, float] = (5.0, 50.0)
    host_fraction: float = 0.3
    negative_fraction: float = 0.0
    gain: float = 2.0
    read_noise: float = 6.0
    saturation: float = 50_000.0
    sky: float = 300.0
    template_sky: float = 250.0
    sky_gradient: float = 0.1
    zero_point: float = 26.5
    template_zero_point: float = 26.8
    template_depth: int = 10
    cloud_gradient: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    bad_columns: int = 3
    cosmic_rays: int = 0
    template_coverage: float = 1.0
    nan_regions: int = 0
    dominating_galaxy: bool = False


@dataclass(frozen=True)
class SimulatedPair:
    """The two images and the truth; all arrays have the shape (ny, nx) of the settings.

    Attributes
    ----------
    settings : PairSettings
        What was asked for.
    science, template : ndarray of float32
        ADU, noise and sky included.
    science_variance, template_variance : ndarray of float32
        The true, noise-free variance of every pixel, ADU² (transients included).
    science_mask, template_mask : ndarray of uint16
        `core.image.MaskBit` flags.
    science_psf, template_psf : SimulatedPSF
        The true PSFs.
    stars : astropy.table.Table
        ``x``, ``y``, ``mag``, ``flux`` (science ADU), ``template_flux``.
    galaxies : Galaxies
        On the science pixels.
    transients : astropy.table.Table
        ``x``, ``y`` (science pixels, 0-based), ``flux`` (science ADU, signed), ``snr``, ``mag``,
        ``on_galaxy``, ``host_mag`` (NaN without a host).
    flux_scale : float
        Science ADU per template ADU (where there is no cloud).
    """

    settings: PairSettings
    science: FloatImage
    template: FloatImage
    science_variance: FloatImage
    template_variance: FloatImage
    science_mask: MaskImage
    template_mask: MaskImage
    science_psf: SimulatedPSF
    template_psf: SimulatedPSF
    stars: Table
    galaxies: Galaxies = field(repr=False)
    transients: Table = field(repr=False)
    flux_scale: float = 1.0

    @property
    def science_detector(self) -> Detector:
        """The detector that read the science image."""
        s = self.settings
        return Detector(s.gain, s.read_noise, s.saturation)

    @property
    def template_detector(self) -> Detector:
        """The detector, as many times as exposures were averaged, behind the template."""
        s = self.settings
        return Detector(s.gain, s.read_noise, s.saturation, s.template_depth)

    @property
    def science_model(self) -> FloatArray:
        """The expected science counts without noise and saturation, sky included, ADU."""
        return self.science_detector.model(self.science_variance)

    @property
    def template_model(self) -> FloatArray:
        """The expected template counts without noise and saturation, sky included, ADU."""
        return self.template_detector.model(self.template_variance)


def simulate_pair(settings: PairSettings = PairSettings()) -> SimulatedPair:
    """Simulate a science image, its template, and the truth about both.

    Parameters
    ----------
    settings : PairSettings
        What kind of pair.

    Returns
    -------
    SimulatedPair
        Equal settings give equal pairs, bit for bit.
    """
    s = settings
    nx = s.shape[1]
    sky_rng, optics_rng, place_rng, detector_rng, science_rng, template_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence(s.seed).spawn(6)
    )
    stars, galaxies = _draw_sky(s, sky_rng)
    science_psf = SimulatedPSF.draw(
        optics_rng,
        s.shape,
        s.science_fwhm,
        s.fwhm_variation,
        s.ellipticity,
        s.psf_profile,
        s.moffat_beta,
    )
    template_psf = SimulatedPSF.draw(
        optics_rng,
        s.shape,
        s.template_fwhm,
        0.5 * s.fwhm_variation,
        s.ellipticity,
        s.psf_profile,
        s.moffat_beta,
    )
    flux_scale = 10.0 ** (0.4 * (s.zero_point - s.template_zero_point))
    sky = SkyLevel(s.sky, s.sky * s.sky_gradient, -0.5 * s.sky * s.sky_gradient)
    science_detector = Detector(
        s.gain,
        s.read_noise,
        s.saturation,
        bad_columns=draw_bad_columns(detector_rng, s.shape, s.bad_columns),
    )
    template_detector = Detector(s.gain, s.read_noise, s.saturation, s.template_depth)

    def transparency(x: npt.ArrayLike) -> FloatArray:
        return 1.0 - s.cloud_gradient * np.clip(np.asarray(x, dtype=float) / max(nx - 1, 1), 0, 1)

    star_flux = _flux(stars.mag, s.zero_point) * transparency(stars.x)
    science = np.zeros(s.shape)
    add_stars(science, science_psf, stars.x, stars.y, star_flux)
    noise_floor = float(np.sqrt(science_detector.variance(np.array(s.sky))))
    bright_stars = science.copy()
    galaxy_flux = _flux(galaxies.mag, s.zero_point) * transparency(galaxies.x)
    add_galaxies(science, science_psf, galaxies, galaxy_flux)
    science += sky.image(s.shape)

    template = np.full(s.shape, s.template_sky)
    moved = galaxies.moved(galaxies.x + s.shift[0], galaxies.y + s.shift[1])
    star_template_flux = _flux(stars.mag, s.template_zero_point)
    add_stars(
        template, template_psf, stars.x + s.shift[0], stars.y + s.shift[1], star_template_flux
    )
    add_galaxies(template, template_psf, moved, _flux(galaxies.mag, s.template_zero_point))
    science_full = science_detector.saturated(science, s.sky)
    template_full = template_detector.saturated(template, s.template_sky)
    uncovered = np.zeros(s.shape, dtype=bool)
    uncovered[:, round(s.template_coverage * nx) :] = True
    nan_region = _nan_regions(detector_rng, s.shape, s.nan_regions)

    defects = science_full | template_full | uncovered | nan_region
    for bad in science_detector.bad_columns:
        defects[bad.first : bad.last + 1, bad.column] = True
    budget = NoiseBudget(
        science_detector.variance(science),
        template_detector.variance(template),
        science_psf,
        template_psf,
        flux_scale,
        s.gain,
    )
    transients = _draw_transients(
        s,
        place_rng,
        galaxies,
        keep_out_map(defects, bright_stars, 5.0 * noise_floor),
        budget,
        transparency,
    )
    flux = np.asarray(transients["flux"], dtype=float)
    x, y = np.asarray(transients["x"]), np.asarray(transients["y"])
    add_stars(science, science_psf, x[flux > 0], y[flux > 0], flux[flux > 0])
    gone = flux < 0
    add_stars(
        template,
        template_psf,
        x[gone] + s.shift[0],
        y[gone] + s.shift[1],
        -flux[gone] / flux_scale / transparency(x[gone]),
    )

    science_data, science_mask = science_detector.read(
        science_rng, science, science_full, s.cosmic_rays
    )
    template_data, template_mask = template_detector.read(template_rng, template, template_full)
    science_data[nan_region] = np.nan
    science_mask[nan_region] |= np.uint16(MaskBit.NO_DATA)
    template_data[uncovered] = np.nan
    template_mask[uncovered] |= np.uint16(MaskBit.NO_DATA)
    return SimulatedPair(
        settings=s,
        science=science_data,
        template=template_data,
        science_variance=science_detector.variance(science),
        template_variance=template_detector.variance(template),
        science_mask=science_mask,
        template_mask=template_mask,
        science_psf=science_psf,
        template_psf=template_psf,
        stars=Table(
            {
                "x": stars.x,
                "y": stars.y,
                "mag": stars.mag,
                "flux": star_flux,
                "template_flux": star_template_flux,
            }
        ),
        galaxies=galaxies,
        transients=transients,
        flux_scale=flux_scale,
    )


def _draw_sky(s: PairSettings, rng: np.random.Generator) -> tuple[Stars, Galaxies]:
    ny, nx = s.shape
    million = ny * nx / 1e6
    n_stars = s.n_stars if s.n_stars is not None else round(s.star_density * million)
    n_galaxies = s.n_galaxies if s.n_galaxies is not None else round(s.galaxy_density * million)
    stars = draw_stars(rng, s.shape, n_stars, s.star_bright, s.star_faint, s.star_slope)
    galaxies = draw_galaxies(rng, s.shape, n_galaxies)
    if s.dominating_galaxy:
        one = np.ones(1)
        giant = Galaxies(
            x=one * nx * 0.5,
            y=one * ny * 0.5,
            mag=one * 11.0,
            radius=one * 0.05 * min(ny, nx),
            axis_ratio=one * 0.7,
            angle=one * 0.6,
            bulge=np.array([True]),
        )
        galaxies = join_galaxies(galaxies, giant)
    return stars, galaxies


def _draw_transients(
    s: PairSettings,
    rng: np.random.Generator,
    galaxies: Galaxies,
    keep_out: npt.NDArray[np.bool_],
    budget: NoiseBudget,
    transparency: Callable[[FloatArray], FloatArray],
) -> Table:
    hosted_x, hosted_y, host = draw_places_on_galaxies(
        rng, round(s.n_transients * s.host_fraction), galaxies, s.shape, keep_out
    )
    free_x, free_y = draw_places(
        rng, s.n_transients - len(hosted_x), s.shape, keep_out, (hosted_x, hosted_y)
    )
    x, y = np.concatenate([hosted_x, free_x]), np.concatenate([hosted_y, free_y])
    snr = rng.uniform(*s.snr_range, x.size)
    sign = np.where(rng.random(x.size) < s.negative_fraction, -1.0, 1.0)
    clear = transparency(x)
    flux = np.array(
        [
            replace(budget, flux_scale=budget.flux_scale * clear[i]).flux_for(
                x[i], y[i], snr[i], sign[i]
            )
            for i in range(x.size)
        ]
    )
    on_galaxy = np.arange(x.size) < len(hosted_x)
    host_mag = np.full(x.size, np.nan)
    host_mag[: len(hosted_x)] = galaxies.mag[host]
    return Table(
        {
            "x": x,
            "y": y,
            "flux": flux,
            "snr": snr,
            "mag": s.zero_point - 2.5 * np.log10(np.maximum(np.abs(flux), 1e-30)),
            "on_galaxy": on_galaxy,
            "host_mag": host_mag,
        }
    )


def _nan_regions(rng: np.random.Generator, shape: tuple[int, int], n: int) -> npt.NDArray[np.bool_]:
    ny, nx = shape
    region = np.zeros(shape, dtype=bool)
    for _ in range(n):
        y, x = int(rng.integers(0, ny)), int(rng.integers(0, nx))
        region[y : y + max(ny // 25, 3), x : x + max(nx // 25, 3)] = True
    return region


def _flux(mag: FloatArray, zero_point: float) -> FloatArray:
    return 10.0 ** (-0.4 * (mag - zero_point))
