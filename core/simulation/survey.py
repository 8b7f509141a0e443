"""A small survey: a deep template, a few nights of exposures, their events and the truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.table import Table
from astropy.time import Time
from astropy.wcs import WCS

from core.image import FloatImage, MaskBit, MaskImage
from core.simulation.detector import Detector, SkyLevel, draw_bad_columns
from core.simulation.injection import (
    NoiseBudget,
    draw_places,
    draw_places_on_galaxies,
    keep_out_map,
)
from core.simulation.psf import FloatArray, SimulatedPSF
from core.simulation.render import add_galaxies, add_stars
from core.simulation.sky import Galaxies, Stars, draw_galaxies, draw_stars

_MASK_CARDS = (
    (0, MaskBit.BAD, "bad pixel of the detector"),
    (1, MaskBit.SATURATED, "saturated or bled into"),
    (2, MaskBit.NO_DATA, "no data"),
    (3, MaskBit.COSMIC_RAY, "cosmic ray"),
)


@dataclass(frozen=True)
class SurveySettings:
    """What kind of survey to simulate; everything that is random follows from ``seed``.

    Attributes
    ----------
    n_exposures : int
        One exposure a night.
    shape : tuple of int
        (ny, nx) of an exposure.
    seed : int
        Determines everything.
    ra, dec : float
        Centre of the field, degrees.
    pixel_scale : float
        Arcseconds.
    band : str
        Band of all images.
    first_night : float
        MJD of the first exposure's start.
    exposure_time : float
        Seconds.
    fwhm_range : tuple of float
        Seeing of the exposures, pixels.
    template_fwhm : float
        Seeing of the template, pixels.
    fwhm_variation, ellipticity : float
        Of the PSF over the field.
    star_density, galaxy_density : float
        Per 10⁶ pixels.
    n_transients : int
        Sources that are not in the template; they rise and fade over the nights.
    host_fraction : float
        Part of them that sits on galaxies.
    n_variables : int
        Stars that are brighter or fainter than in the template.
    peak_snr_range : tuple of float
        Signal-to-noise ratio of the transients at maximum in an average exposure.
    gain, read_noise, saturation : float
        Electrons per ADU, electrons, ADU.
    sky_range : tuple of float
        Sky levels of the exposures, ADU.
    sky_gradient : float
        Largest relative change of the sky over the frame.
    zero_point, template_zero_point : float
        AB magnitude of 1 ADU, for a clear sky.
    transparency_range : tuple of float
        Part of the light that comes through in each exposure.
    template_depth : int
        Exposures averaged in the template.
    dither : float
        Largest offset of an exposure, pixels.
    rotation : float
        Largest rotation of an exposure, degrees.
    bad_columns : int
        Defects of the detector, the same in every exposure.
    cosmic_rays : int
        Tracks in every exposure; flagged in its mask.
    """

    n_exposures: int = 6
    shape: tuple[int, int] = (1024, 1024)
    seed: int = 1
    ra: float = 185.4
    dec: float = 14.2
    pixel_scale: float = 1.0
    band: str = "r"
    first_night: float = 61000.2
    exposure_time: float = 30.0
    fwhm_range: tuple[float, float] = (2.9, 4.4)
    template_fwhm: float = 2.5
    fwhm_variation: float = 0.08
    ellipticity: float = 0.03
    star_density: float = 1200.0
    galaxy_density: float = 250.0
    n_transients: int = 36
    host_fraction: float = 0.4
    n_variables: int = 8
    peak_snr_range: tuple[float, float] = (8.0, 90.0)
    gain: float = 2.0
    read_noise: float = 6.0
    saturation: float = 50_000.0
    sky_range: tuple[float, float] = (220.0, 420.0)
    sky_gradient: float = 0.1
    zero_point: float = 26.5
    template_zero_point: float = 26.8
    transparency_range: tuple[float, float] = (0.75, 1.0)
    template_depth: int = 12
    dither: float = 12.0
    rotation: float = 0.4
    bad_columns: int = 3
    cosmic_rays: int = 0


@dataclass(frozen=True)
class SimulatedExposure:
    """One exposure on disk.

    Attributes
    ----------
    event : dict
        The exposure event, fields as in the exposure contract, ready for JSON.
    truth : astropy.table.Table
        What differs from the template and lies on the exposure: ``source`` (number over the
        survey), ``kind`` (``transient`` or ``variable``), ``x``, ``y`` (0-based pixels), ``ra``,
        ``dec`` (degrees), ``flux`` (ADU of the difference, signed), ``mag`` (of its absolute
        value), ``snr`` (optimal), ``on_galaxy``, ``masked`` (a defect within 3 pixels).
    fwhm, transparency, sky : float
        What the night was like: pixels, fraction, ADU.
    zero_point : float
        True zero point of the exposure.
    """

    event: dict[str, Any]
    truth: Table
    fwhm: float
    transparency: float
    sky: float
    zero_point: float


@dataclass(frozen=True)
class SimulatedSurvey:
    """A survey on disk.

    Attributes
    ----------
    settings : SurveySettings
        What was asked for.
    template_dir : pathlib.Path
        Folder of the template, its mask and its weight.
    exposures : tuple of SimulatedExposure
        In order of time.
    """

    settings: SurveySettings
    template_dir: Path
    exposures: tuple[SimulatedExposure, ...]


@dataclass(frozen=True)
class _ChangingSource:
    """A source whose flux differs from the template's; pixels are the template's."""

    x: float
    y: float
    kind: str
    on_galaxy: bool
    reference_mag: float | None  # of the star in the template, None for a transient
    change: Callable[[float], float]  # night -> flux difference in units of zero point 0 flux


def simulate_survey(
    settings: SurveySettings,
    out_dir: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> SimulatedSurvey:
    """Simulate a survey and write its images, masks, weights, events and truth tables.

    Parameters
    ----------
    settings : SurveySettings
        What kind of survey.
    out_dir : str or path
        Folder; ``template/``, ``exposures/``, ``events.jsonl`` and ``truth/`` are made in it.
    progress : callable, optional
        Called with (images written, images to write).

    Returns
    -------
    SimulatedSurvey
        Equal settings give equal pixels and truth.
    """
    s = settings
    out = Path(out_dir).resolve()
    for folder in ("template", "exposures", "truth"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    report = progress or (lambda done, total: None)
    sky_rng, optics_rng, source_rng, template_rng, *night_rngs = (
        np.random.default_rng(child)
        for child in np.random.SeedSequence(s.seed).spawn(4 + s.n_exposures)
    )
    margin = int(np.ceil(2.0 * s.dither + 0.5 * max(s.shape) * np.radians(s.rotation))) + 16
    template_shape = (s.shape[0] + 2 * margin, s.shape[1] + 2 * margin)
    template_wcs = _tangent_plane(s, template_shape, 0.0, (0.37, -0.21))
    million = template_shape[0] * template_shape[1] / 1e6
    stars = draw_stars(sky_rng, template_shape, round(s.star_density * million))
    galaxies = draw_galaxies(sky_rng, template_shape, round(s.galaxy_density * million))
    template = _make_template(s, template_shape, stars, galaxies, optics_rng)
    sources = _draw_sources(s, template, stars, galaxies, margin, source_rng)
    _write_template(s, out / "template", template, template_wcs, template_rng)
    report(1, s.n_exposures + 1)

    detector = Detector(
        s.gain,
        s.read_noise,
        s.saturation,
        bad_columns=draw_bad_columns(optics_rng, s.shape, s.bad_columns),
    )
    exposures = []
    for night, rng in enumerate(night_rngs):
        exposures.append(
            _make_exposure(
                s, out, night, rng, detector, template, template_wcs, stars, galaxies, sources
            )
        )
        report(night + 2, s.n_exposures + 1)
    lines = (json.dumps(exposure.event) for exposure in exposures)
    (out / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return SimulatedSurvey(s, out / "template", tuple(exposures))


@dataclass(frozen=True)
class _TemplateModel:
    model: FloatArray
    variance: FloatImage
    saturated: npt.NDArray[np.bool_]
    star_light: FloatArray
    psf: SimulatedPSF
    detector: Detector


def _make_template(
    s: SurveySettings,
    shape: tuple[int, int],
    stars: Stars,
    galaxies: Galaxies,
    rng: np.random.Generator,
) -> _TemplateModel:
    psf = SimulatedPSF.draw(rng, shape, s.template_fwhm, 0.5 * s.fwhm_variation, s.ellipticity)
    detector = Detector(s.gain, s.read_noise, s.saturation, s.template_depth)
    model = np.zeros(shape)
    add_stars(model, psf, stars.x, stars.y, _flux(stars.mag, s.template_zero_point))
    star_light = model.copy()
    add_galaxies(model, psf, galaxies, _flux(galaxies.mag, s.template_zero_point))
    level = float(np.mean(s.sky_range))
    model += level
    return _TemplateModel(
        model, detector.variance(model), detector.saturated(model, level), star_light, psf, detector
    )


def _draw_sources(
    s: SurveySettings,
    template: _TemplateModel,
    stars: Stars,
    galaxies: Galaxies,
    margin: int,
    rng: np.random.Generator,
) -> list[_ChangingSource]:
    """Choose the transients and the variable stars, with their light curves."""
    shape = template.model.shape
    noise = float(np.sqrt(np.mean(s.sky_range) / s.gain + (s.read_noise / s.gain) ** 2))
    limit = 5.0 * noise * 10.0 ** (0.4 * (s.template_zero_point - s.zero_point))
    keep_out = keep_out_map(template.saturated, template.star_light, limit)
    # An isolated star of the mean seeing in an average exposure, in flux of zero point 0.
    fwhm = float(np.mean(s.fwhm_range))
    unit_noise = noise * np.sqrt(4.0 * np.pi) * fwhm / 2.355 * 1.2
    unit_noise *= 10.0 ** (-0.4 * s.zero_point) / float(np.mean(s.transparency_range))

    hosted_x, hosted_y, _ = draw_places_on_galaxies(
        rng,
        round(s.n_transients * s.host_fraction),
        galaxies,
        (shape[0], shape[1]),
        keep_out,
        margin=margin + 32.0,
    )
    free_x, free_y = draw_places(
        rng,
        s.n_transients - len(hosted_x),
        (shape[0], shape[1]),
        keep_out,
        (hosted_x, hosted_y),
        margin=margin + 32.0,
    )
    x, y = np.concatenate([hosted_x, free_x]), np.concatenate([hosted_y, free_y])
    sources = [
        _ChangingSource(
            float(x[i]),
            float(y[i]),
            "transient",
            i < len(hosted_x),
            None,
            _transient_light_curve(
                peak=unit_noise * np.exp(rng.uniform(*np.log(s.peak_snr_range))),
                maximum=rng.uniform(-2.0, s.n_exposures - 0.5),
                rise=rng.uniform(1.0, 3.0),
                decline=rng.uniform(3.0, 12.0),
            ),
        )
        for i in range(x.size)
    ]
    signal = _flux(stars.mag, 0.0) / unit_noise
    ny, nx = shape
    inside = (
        (np.abs(stars.x - 0.5 * (nx - 1)) < 0.5 * nx - margin - 32.0)
        & (np.abs(stars.y - 0.5 * (ny - 1)) < 0.5 * ny - margin - 32.0)
        & (signal > 50.0)
        & (signal < 600.0)
    )
    # A variable star must not hide in the light of another, or of a transient.
    apart = [
        i
        for i in np.flatnonzero(inside)
        if np.sort(np.hypot(stars.x - stars.x[i], stars.y - stars.y[i]))[1] > 8.0
        and np.min(np.hypot(x - stars.x[i], y - stars.y[i]), initial=np.inf) > 25.0
        and not template.saturated[
            max(round(stars.y[i]) - 10, 0) : round(stars.y[i]) + 11,
            max(round(stars.x[i]) - 10, 0) : round(stars.x[i]) + 11,
        ].any()
    ]
    for number, i in enumerate(rng.permutation(apart)[: s.n_variables]):
        reference = float(_flux(stars.mag[i], 0.0))
        if number % 4 == 0:  # a star that has faded away
            change = _constant(-reference)
        else:
            change = _pulsation(
                reference,
                amplitude=rng.uniform(0.15, 0.5),
                period=rng.uniform(1.7, 6.0),
                phase=rng.uniform(0.0, 2.0 * np.pi),
            )
        sources.append(
            _ChangingSource(
                float(stars.x[i]), float(stars.y[i]), "variable", False, float(stars.mag[i]), change
            )
        )
    return sources


def _transient_light_curve(
    peak: float, maximum: float, rise: float, decline: float
) -> Callable[[float], float]:
    def flux(night: float) -> float:
        phase = night - maximum
        return peak * float(np.exp(-((phase / rise) ** 2) if phase < 0 else -phase / decline))

    return flux


def _pulsation(
    reference: float, amplitude: float, period: float, phase: float
) -> Callable[[float], float]:
    def flux(night: float) -> float:
        change = amplitude * np.sin(2.0 * np.pi * night / period + phase)
        return reference * float(10.0 ** (-0.4 * change) - 1.0)

    return flux


def _constant(value: float) -> Callable[[float], float]:
    return lambda night: value


def _make_exposure(
    s: SurveySettings,
    out: Path,
    night: int,
    rng: np.random.Generator,
    detector: Detector,
    template: _TemplateModel,
    template_wcs: WCS,
    stars: Stars,
    galaxies: Galaxies,
    sources: list[_ChangingSource],
) -> SimulatedExposure:
    fwhm = float(rng.uniform(*s.fwhm_range))
    transparency = float(rng.uniform(*s.transparency_range))
    level = float(rng.uniform(*s.sky_range))
    sky = SkyLevel(level, *(float(level * s.sky_gradient * g) for g in rng.uniform(-1.0, 1.0, 2)))
    rotation = float(rng.uniform(-s.rotation, s.rotation))
    wcs = _tangent_plane(s, s.shape, rotation, rng.uniform(-s.dither, s.dither, 2))
    psf = SimulatedPSF.draw(rng, s.shape, fwhm, s.fwhm_variation, s.ellipticity)
    zero_point = s.zero_point + 2.5 * np.log10(transparency)

    def place(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        px, py = wcs.all_world2pix(*template_wcs.all_pix2world(x, y, 0), 0)
        return np.asarray(px), np.asarray(py)

    model = np.zeros(s.shape)
    add_stars(model, psf, *place(stars.x, stars.y), _flux(stars.mag, zero_point))
    add_galaxies(
        model,
        psf,
        galaxies.moved(*place(galaxies.x, galaxies.y), np.radians(-rotation)),
        _flux(galaxies.mag, zero_point),
    )
    model += sky.image(s.shape)
    x, y = place([source.x for source in sources], [source.y for source in sources])
    flux = np.array([source.change(float(night)) for source in sources])
    flux *= 10.0 ** (0.4 * zero_point)
    still = detector.variance(model)
    add_stars(model, psf, x, y, flux)
    saturated = detector.saturated(model, sky.level)
    data, mask = detector.read(rng, model, saturated, s.cosmic_rays)

    budget = NoiseBudget(
        # A star's own light, where it is fainter now, is part of the noise already.
        np.minimum(still, detector.variance(model)),
        template.variance,
        psf,
        template.psf,
        10.0 ** (0.4 * (zero_point - s.template_zero_point)),
        s.gain,
    )
    ra, dec = wcs.all_pix2world(x, y, 0)
    truth = _truth_table(sources, x, y, ra, dec, flux, zero_point, mask, budget)
    name = f"sim_{s.seed:04d}_{night + 1:03d}"
    start = s.first_night + night
    _write_exposure(s, out / "exposures", name, start, data, mask, wcs, fwhm)
    truth.write(out / "truth" / f"{name}.ecsv", format="ascii.ecsv", overwrite=True)
    event = {
        "exposure_id": name,
        "science_uri": (out / "exposures" / f"{name}.fits").as_uri(),
        "mask_uri": (out / "exposures" / f"{name}.mask.fits").as_uri(),
        "band": s.band,
        "mjd_mid": start + 0.5 * s.exposure_time / 86400.0,
        "exposure_time": s.exposure_time,
        "instrument": "SimCam",
        "field": "sim-1",
        "detector": "0",
        "program": "demo",
    }
    return SimulatedExposure(event, truth, fwhm, transparency, sky.level, float(zero_point))


def _truth_table(
    sources: list[_ChangingSource],
    x: FloatArray,
    y: FloatArray,
    ra: FloatArray,
    dec: FloatArray,
    flux: FloatArray,
    zero_point: float,
    mask: MaskImage,
    budget: NoiseBudget,
) -> Table:
    ny, nx = mask.shape
    rows = []
    for i, source in enumerate(sources):
        if not (0 <= round(x[i]) < nx and 0 <= round(y[i]) < ny):
            continue
        column, row = round(float(x[i])), round(float(y[i]))
        near = mask[max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4]
        rows.append(
            (
                i,
                source.kind,
                float(x[i]),
                float(y[i]),
                float(ra[i]),
                float(dec[i]),
                float(flux[i]),
                zero_point - 2.5 * float(np.log10(max(abs(flux[i]), 1e-9))),
                budget.snr(float(x[i]), float(y[i]), float(flux[i]), (source.x, source.y)),
                source.on_galaxy,
                bool(near.any()),
            )
        )
    names = (
        "source",
        "kind",
        "x",
        "y",
        "ra",
        "dec",
        "flux",
        "mag",
        "snr",
        "on_galaxy",
        "masked",
    )
    dtypes = ("i4", "U9", "f8", "f8", "f8", "f8", "f8", "f8", "f8", "?", "?")
    return Table(rows=rows, names=names, dtype=dtypes)


def _tangent_plane(
    s: SurveySettings, shape: tuple[int, int], rotation: float, offset: npt.ArrayLike
) -> WCS:
    """Return a gnomonic WCS, north up but for the rotation (degrees), centre moved by offset."""
    wcs = WCS(naxis=2)
    scale = s.pixel_scale / 3600.0
    angle = np.radians(rotation)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.crval = [s.ra, s.dec]
    dx, dy = np.asarray(offset, dtype=float)
    wcs.wcs.crpix = [0.5 * (shape[1] + 1) + dx, 0.5 * (shape[0] + 1) + dy]
    wcs.wcs.cd = scale * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs.wcs.radesys = "ICRS"
    wcs.pixel_shape = (shape[1], shape[0])
    wcs.wcs.set()
    return wcs


def _write_template(
    s: SurveySettings,
    folder: Path,
    template: _TemplateModel,
    wcs: WCS,
    rng: np.random.Generator,
) -> None:
    data, mask = template.detector.read(rng, template.model, template.saturated)
    header = wcs.to_header()
    header["OBJECT"] = ("sim-1", "field")
    header["TELESCOP"] = "SimTel"
    header["INSTRUME"] = "SimCam"
    header["FILTER"] = (s.band, "band")
    header["EXPTIME"] = (s.exposure_time, "[s] exposure time of the mean frame")
    header["NCOMBINE"] = (s.template_depth, "frames averaged")
    header["MJD-BEG"] = (s.first_night - 200.0, "[d] start of the first frame")
    header["MJD-END"] = (s.first_night - 100.0, "[d] end of the last frame")
    header["MJD-OBS"] = (s.first_night - 200.0, "[d] start of the first frame")
    header["GAIN"] = (s.gain * s.template_depth, "[e-/ADU] effective gain of the mean")
    header["RDNOISE"] = (s.read_noise * np.sqrt(s.template_depth), "[e-] effective read noise")
    header["SATURATE"] = (s.saturation, "[ADU] saturation level")
    header["MAGZP"] = (s.template_zero_point, "[mag] AB magnitude of 1 ADU")
    header["MAGZPUNC"] = (0.01, "[mag] its uncertainty")
    header["SEEING"] = (round(s.template_fwhm, 2), "[pix] FWHM of the stars")
    header["BUNIT"] = "adu"
    fits.writeto(folder / "template.fits", data, header, overwrite=True, checksum=True)
    _write_mask(folder / "template.mask.fits", mask, wcs)
    _write_weight(folder / "template.weight.fits", template.variance, mask, wcs)


def _write_exposure(
    s: SurveySettings,
    folder: Path,
    name: str,
    start: float,
    data: FloatImage,
    mask: MaskImage,
    wcs: WCS,
    fwhm: float,
) -> None:
    header = wcs.to_header()
    header["OBJECT"] = ("sim-1", "field")
    header["TELESCOP"] = "SimTel"
    header["INSTRUME"] = "SimCam"
    header["FILTER"] = (s.band, "band")
    header["EXPTIME"] = (s.exposure_time, "[s] exposure time")
    header["MJD-OBS"] = (start, "[d] start of the exposure (UTC)")
    header["DATE-OBS"] = (Time(start, format="mjd", scale="utc").isot, "start of the exposure")
    header["GAIN"] = (s.gain, "[e-/ADU] gain")
    header["RDNOISE"] = (s.read_noise, "[e-] read noise")
    header["SATURATE"] = (s.saturation, "[ADU] saturation level")
    header["SEEING"] = (round(fwhm, 2), "[pix] FWHM of the stars")
    header["AIRMASS"] = (1.1, "mean airmass")
    header["BUNIT"] = "adu"
    # Whole counts, as a converter gives them.
    counts = np.rint(data).astype(np.float32)
    fits.writeto(folder / f"{name}.fits", counts, header, overwrite=True, checksum=True)
    _write_mask(folder / f"{name}.mask.fits", mask, wcs)


def _write_mask(path: Path, mask: MaskImage, wcs: WCS) -> None:
    header = wcs.to_header()
    for number, bit, meaning in _MASK_CARDS:
        if 1 << number != int(bit):
            raise AssertionError(f"bit {number} of the mask cards is not {bit!r}")
        header[f"BIT{number:02d}"] = (number, meaning)
    fits.writeto(path, mask.astype(np.int16), header, overwrite=True, checksum=True)


def _write_weight(path: Path, variance: FloatImage, mask: MaskImage, wcs: WCS) -> None:
    weight = np.where(mask == 0, 1.0 / variance, 0.0).astype(np.float32)
    header = wcs.to_header()
    header["BUNIT"] = ("1 / adu2", "inverse variance")
    fits.writeto(path, weight, header, overwrite=True, checksum=True)


def _flux(mag: npt.ArrayLike, zero_point: float) -> FloatArray:
    return 10.0 ** (-0.4 * (np.asarray(mag, dtype=float) - zero_point))
