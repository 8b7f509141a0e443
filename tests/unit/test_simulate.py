"""The simulated truth is checked against independent arithmetic: all other figures rest on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from core.image import MaskBit
from core.simulate import (
    Detector,
    Galaxies,
    NoiseBudget,
    PairSettings,
    SimulatedPair,
    SimulatedPSF,
    SimulatedSurvey,
    SurveySettings,
    add_galaxies,
    add_stars,
    simulate_pair,
    simulate_survey,
)

SMALL = PairSettings(shape=(300, 400), seed=7, n_transients=20)


@pytest.fixture(scope="module")
def pair() -> SimulatedPair:
    return simulate_pair(SMALL)


def round_psf(fwhm: float, profile: str = "moffat") -> SimulatedPSF:
    rng = np.random.default_rng(0)
    return SimulatedPSF.draw(rng, (101, 101), fwhm, 0.0, 0.0, profile)  # type: ignore[arg-type]


# --- optics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["moffat", "gaussian"])
@pytest.mark.parametrize("fwhm", [2.6, 3.6, 6.0])
def test_psf_has_the_fwhm_that_was_asked_for(profile: str, fwhm: float) -> None:
    psf = round_psf(fwhm, profile)
    # Sampling the centred PSF at sub-pixel offsets gives its radial profile.
    radius = np.linspace(0.0, fwhm, 400)
    values = np.array([psf.at(50, 50, size=1, dx=-r)[0, 0] for r in radius])
    half = np.interp(-0.5 * values[0], -values, radius)
    assert 2.0 * half == pytest.approx(fwhm, rel=1e-3)


def test_mixture_follows_the_moffat_profile() -> None:
    psf = round_psf(4.0)
    alpha = 4.0 / (2.0 * np.sqrt(2.0 ** (1.0 / 3.5) - 1.0))
    radius = np.array([0.0, 1.0, 2.0, 4.0, 6.0])
    mixture = np.array([psf.at(50, 50, size=1, dx=-r)[0, 0] for r in radius])
    moffat = 2.5 / (np.pi * alpha**2) * (1.0 + (radius / alpha) ** 2) ** -3.5
    # Four Gaussians follow it to 2 % of the local light out to one FWHM, to 12 % in the wings.
    np.testing.assert_allclose(mixture[:4], moffat[:4], rtol=0.02)
    np.testing.assert_allclose(mixture, moffat, rtol=0.12)


def test_psf_varies_by_what_was_asked_for() -> None:
    psf = SimulatedPSF.draw(np.random.default_rng(3), (500, 700), 3.6, 0.1, 0.04)
    y, x = np.mgrid[0:500:20, 0:700:20]
    change = psf.fwhm_at(x, y) / 3.6 - 1.0
    assert np.abs(change).max() == pytest.approx(0.1, abs=0.005)
    xx, xy, yy = np.moveaxis(psf.covariance_at(x, y), -1, 0)
    ellipticity = np.hypot(xx - yy, 2.0 * xy) / (xx + yy)
    assert 0.005 < ellipticity.max() < 0.08
    np.testing.assert_allclose((xx * yy - xy**2) ** 0.25, psf.fwhm_at(x, y), rtol=1e-9)


def test_transfer_function_is_the_transform_of_the_stamp() -> None:
    psf = SimulatedPSF.draw(np.random.default_rng(5), (101, 101), 3.2, 0.05, 0.1)
    stamp = psf.at(30.0, 70.0, size=65)[:64, :64]
    numeric = np.fft.fft2(np.fft.ifftshift(stamp)).real
    np.testing.assert_allclose(psf.transfer_at(30.0, 70.0, 64), numeric, atol=2e-3)


# --- sources --------------------------------------------------------------------------------


@pytest.mark.parametrize("flux", [3.0, -40.0, 1e6])
def test_star_carries_its_flux_to_its_place(flux: float) -> None:
    image = np.zeros((201, 201))
    add_stars(
        image, SimulatedPSF.draw(np.random.default_rng(1), (201, 201), 3.1), 99.3, 102.8, flux
    )
    assert image.sum() == pytest.approx(flux, rel=2e-5)
    y, x = np.mgrid[0:201, 0:201]
    assert (image * x).sum() / image.sum() == pytest.approx(99.3, abs=1e-3)
    assert (image * y).sum() / image.sum() == pytest.approx(102.8, abs=1e-3)


def test_star_is_the_psf() -> None:
    image = np.zeros((101, 101))
    psf = SimulatedPSF.draw(np.random.default_rng(1), (101, 101), 3.1, 0.1, 0.1)
    add_stars(image, psf, 50.4, 49.7, 1e5)
    np.testing.assert_allclose(
        image[30:71, 30:71], 1e5 * psf.at(50.4, 49.7, 41, 0.4, -0.3), atol=0.02
    )


@pytest.mark.parametrize("bulge", [False, True])
def test_galaxy_has_its_flux_and_half_light_radius(bulge: bool) -> None:
    one = np.ones(1)
    galaxy = Galaxies(250 * one, 250 * one, 17 * one, 12 * one, one, 0 * one, np.array([bulge]))
    image = np.zeros((501, 501))
    add_galaxies(image, round_psf(2.0), galaxy, 1e5 * one)
    assert image.sum() == pytest.approx(1e5, rel=2e-3)
    y, x = np.mgrid[0:501, 0:501]
    inside = image[np.hypot(x - 250, y - 250) <= 12.0].sum() / 1e5
    assert inside == pytest.approx(0.5, abs=0.03)


# --- noise ----------------------------------------------------------------------------------


def test_noise_has_the_stated_variance(pair: SimulatedPair) -> None:
    for data, model, variance, mask in (
        (pair.science, pair.science_model, pair.science_variance, pair.science_mask),
        (pair.template, pair.template_model, pair.template_variance, pair.template_mask),
    ):
        good = mask == 0
        pull = (data - model)[good] / np.sqrt(variance[good])
        n = pull.size
        assert abs(pull.mean()) < 5.0 / np.sqrt(n)
        assert abs(pull.var() - 1.0) < 5.0 * np.sqrt(2.0 / n)
        bright = variance[good] > 1.5 * np.median(variance)
        assert bright.sum() > 300
        assert abs(pull[bright].var() - 1.0) < 5.0 * np.sqrt(2.0 / bright.sum())


def test_template_of_n_frames_has_a_variance_n_times_smaller() -> None:
    level = np.array([[400.0]])
    one = Detector(2.0, 6.0, 5e4).variance(level)
    assert one[0, 0] == pytest.approx(400 / 2 + 36 / 4)
    assert Detector(2.0, 6.0, 5e4, frames=10).variance(level)[0, 0] == pytest.approx(one[0, 0] / 10)


def test_a_right_kernel_turns_the_template_into_the_science_image() -> None:
    pair = simulate_pair(
        PairSettings(
            shape=(140, 140),
            seed=2,
            star_density=4000,
            fwhm_variation=0.0,
            ellipticity=0.0,
            n_transients=0,
            bad_columns=0,
            sky_gradient=0.0,
            star_bright=14.0,
            shift=(0.3, -0.2),
        )
    )
    science = pair.science_model - pair.settings.sky
    template = pair.template_model - pair.settings.template_sky
    inner = (slice(15, -15), slice(15, -15))
    shifts = [(j, i) for j in range(-8, 9) for i in range(-8, 9)]
    design = np.stack([np.roll(template, s, (0, 1))[inner].ravel() for s in shifts], axis=1)
    kernel, *_ = np.linalg.lstsq(design, science[inner].ravel(), rcond=None)
    residual = (science[inner].ravel() - design @ kernel) / np.sqrt(
        pair.science_variance[inner].ravel()
    )
    assert np.abs(residual).max() < 0.1  # of the noise, in the brightest star's core
    assert kernel.sum() == pytest.approx(pair.flux_scale, rel=1e-3)


# --- transients -----------------------------------------------------------------------------


def test_transients_are_as_many_and_as_bright_as_asked_for(pair: SimulatedPair) -> None:
    truth = pair.transients
    assert len(truth) == 20
    assert truth["on_galaxy"].sum() == 6
    assert truth["snr"].min() >= 5.0
    assert truth["snr"].max() <= 50.0
    others = np.hypot(
        np.subtract.outer(truth["x"], truth["x"]), np.subtract.outer(truth["y"], truth["y"])
    )
    assert others[others > 0].min() > 15.0


def test_injected_snr_is_that_of_optimal_photometry() -> None:
    pair = simulate_pair(replace(SMALL, template_depth=100_000, n_transients=30))
    pulls = []
    for row in pair.transients:
        cx, cy = round(row["x"]), round(row["y"])
        box = (slice(cy - 15, cy + 16), slice(cx - 15, cx + 16))
        psf = pair.science_psf.at(row["x"], row["y"], 31, row["x"] - cx, row["y"] - cy)
        variance = pair.science_variance[box]
        information = float(np.sum(psf**2 / variance))
        assert row["flux"] * np.sqrt(information) == pytest.approx(row["snr"], rel=0.03)
        quiet = (pair.science - pair.science_model)[box]
        pulls.append(np.sum(psf * quiet / variance) / np.sqrt(information))
    assert abs(np.mean(pulls)) < 4.0 / np.sqrt(30)
    assert 0.5 < np.std(pulls) < 1.5


def test_injected_snr_agrees_with_the_full_covariance_of_a_noisy_template() -> None:
    """Brute force: the noise of the difference is white noise plus convolved white noise."""
    science, template = round_psf(4.0, "gaussian"), round_psf(2.6, "gaussian")
    v_s, v_t, scale, flux = 150.0, 120.0, 0.8, 900.0
    ones = np.ones((101, 101), dtype=np.float32)
    budget = NoiseBudget(ones * v_s, ones * v_t, science, template, scale, electrons_per_adu=1e9)
    n = 31
    psf = science.at(50, 50, n)
    variance = (4.0**2 - 2.6**2) / (8.0 * np.log(2.0))
    y, x = np.mgrid[0:n, 0:n]
    separation2 = np.subtract.outer(x.ravel(), x.ravel()) ** 2.0
    separation2 += np.subtract.outer(y.ravel(), y.ravel()) ** 2.0
    # A white image convolved with a Gaussian of this variance has a Gaussian of twice it as
    # its autocovariance.
    covariance = scale**2 * v_t * np.exp(-separation2 / (4.0 * variance)) / (4.0 * np.pi * variance)
    covariance[np.diag_indices(n * n)] += v_s
    expected = flux * np.sqrt(psf.ravel() @ np.linalg.solve(covariance, psf.ravel()))
    assert budget.snr(50, 50, flux) == pytest.approx(expected, rel=0.01)


def test_flux_for_inverts_snr(pair: SimulatedPair) -> None:
    budget = NoiseBudget(
        pair.science_variance,
        pair.template_variance,
        pair.science_psf,
        pair.template_psf,
        pair.flux_scale,
        2.0,
    )
    for snr in (5.0, 50.0, 500.0):
        flux = budget.flux_for(200.2, 150.7, snr)
        assert budget.snr(200.2, 150.7, flux) == pytest.approx(snr, rel=1e-3)


def test_negative_transients_are_in_the_template_only() -> None:
    settings = replace(SMALL, negative_fraction=1.0, star_density=100, galaxy_density=0)
    pair = simulate_pair(settings)
    assert (pair.transients["flux"] < 0).all()
    row = pair.transients[np.argmax(pair.transients["snr"])]
    budget = NoiseBudget(
        pair.science_variance,
        pair.template_variance,
        pair.science_psf,
        pair.template_psf,
        pair.flux_scale,
        settings.gain,
    )
    # The source is in the template's variance now, and hardly matters there.
    assert budget.snr(row["x"], row["y"], row["flux"]) == pytest.approx(row["snr"], rel=0.06)
    brightest = row
    x, y = round(brightest["x"]), round(brightest["y"])
    assert pair.template_model[y, x] > settings.template_sky + 20
    assert pair.science_model[y, x] < 1.1 * settings.sky


# --- settings -------------------------------------------------------------------------------


def test_seed_determines_everything(pair: SimulatedPair) -> None:
    again = simulate_pair(SMALL)
    np.testing.assert_array_equal(again.science, pair.science)
    np.testing.assert_array_equal(again.template, pair.template)
    np.testing.assert_array_equal(again.transients["flux"], pair.transients["flux"])
    other = simulate_pair(replace(SMALL, seed=8))
    assert not np.array_equal(other.stars["x"], pair.stars["x"])
    assert not np.array_equal(other.template, pair.template)


def test_bright_stars_saturate_and_bleed_along_the_column() -> None:
    settings = replace(SMALL, star_bright=7.0, star_slope=0.05, n_stars=60, n_transients=0)
    pair = simulate_pair(settings)
    full = (pair.science_mask & MaskBit.SATURATED) != 0
    assert full.sum() > 50
    assert (pair.science[full & ((pair.science_mask & MaskBit.BAD) == 0)] == 50_000.0).all()
    good = pair.science_mask == 0
    assert pair.science[good].max() < 50_000.0
    bled = full & (pair.science_model < 50_000.0)
    assert bled.sum() > 10
    above = np.roll(full, 1, axis=0) | np.roll(full, -1, axis=0)
    assert (above[bled]).mean() > 0.9


def test_defects_are_flagged(pair: SimulatedPair) -> None:
    columns = (pair.science_mask & MaskBit.BAD).any(axis=0)
    assert columns.sum() == 3
    rich = simulate_pair(
        replace(SMALL, template_coverage=0.6, nan_regions=2, cosmic_rays=30, n_transients=5)
    )
    uncovered = (rich.template_mask & MaskBit.NO_DATA) != 0
    assert uncovered[:, 241:].all()
    assert not uncovered[:, :239].any()
    assert np.isnan(rich.template[uncovered]).all()
    no_data = (rich.science_mask & MaskBit.NO_DATA) != 0
    assert no_data.any()
    np.testing.assert_array_equal(np.isnan(rich.science), no_data)
    assert ((rich.science_mask & MaskBit.COSMIC_RAY) != 0).sum() > 30
    assert (rich.transients["x"] < 240).all()


def test_shift_moves_the_template() -> None:
    base = replace(SMALL, n_transients=0, sky_gradient=0.0, template_sky=0.0)
    still = simulate_pair(base).template_model
    moved = simulate_pair(replace(base, shift=(5.0, -3.0))).template_model
    np.testing.assert_allclose(
        moved[20:-20, 20:-20], np.roll(still, (-3, 5), (0, 1))[20:-20, 20:-20], atol=0.5, rtol=0.02
    )


def test_cloud_dims_one_side() -> None:
    clear = simulate_pair(replace(SMALL, n_transients=0, galaxy_density=0))
    cloudy = simulate_pair(replace(SMALL, n_transients=0, galaxy_density=0, cloud_gradient=0.3))
    ratio = np.asarray(cloudy.stars["flux"] / clear.stars["flux"])
    inside = (clear.stars["x"] > 0) & (clear.stars["x"] < 399)
    np.testing.assert_allclose(ratio[inside], 1.0 - 0.3 * clear.stars["x"][inside] / 399)


def test_dominating_galaxy_dominates() -> None:
    pair = simulate_pair(replace(SMALL, dominating_galaxy=True, n_transients=0))
    assert np.median(pair.science_model[140:160, 190:210]) > 3 * pair.settings.sky


@pytest.mark.parametrize(
    "changes",
    [
        {"template_fwhm": 4.8, "science_fwhm": 3.0},
        {"shape": (130, 700)},
        {"n_stars": 10},
        {"star_density": 40_000},
        {"n_transients": 0, "n_galaxies": 0, "n_stars": 0},
        {"n_transients": 5000},
    ],
)
def test_unusual_pairs_are_sound(changes: dict) -> None:
    pair = simulate_pair(replace(SMALL, **changes))
    assert pair.science.shape == pair.template.shape == pair.settings.shape
    assert np.isfinite(pair.science).all()
    assert np.isfinite(pair.template).all()
    assert (pair.science_variance > 0).all()
    assert (np.asarray(pair.transients["flux"]) > 0).all()
    assert len(pair.transients) <= max(pair.settings.n_transients, 0)


# --- survey ---------------------------------------------------------------------------------

SURVEY = SurveySettings(n_exposures=2, shape=(320, 300), seed=11, n_transients=8, n_variables=4)


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> SimulatedSurvey:
    steps: list[tuple[int, int]] = []
    made = simulate_survey(
        SURVEY, tmp_path_factory.mktemp("survey"), lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    return made


def _open(uri: str) -> tuple[np.ndarray, fits.Header]:
    data, header = fits.getdata(urlparse(uri).path, header=True)
    return data, header


def test_events_follow_the_contract_and_name_files(survey: SimulatedSurvey) -> None:
    schema = json.loads(
        (Path(__file__).parents[2] / "schemas/exposure/1.0/exposure.avsc").read_text()
    )
    fields = {field["name"] for field in schema["fields"]}
    ids = set()
    for exposure in survey.exposures:
        assert set(exposure.event) <= fields
        ids.add(exposure.event["exposure_id"])
        data, header = _open(exposure.event["science_uri"])
        mask, _ = _open(exposure.event["mask_uri"])
        assert data.shape == mask.shape == SURVEY.shape
        assert {"GAIN", "RDNOISE", "SATURATE", "EXPTIME", "MJD-OBS", "FILTER"} <= set(header)
        assert "MAGZP" not in header
        middle = header["MJD-OBS"] + header["EXPTIME"] / 2 / 86400
        assert exposure.event["mjd_mid"] == pytest.approx(middle, abs=1e-6)
        assert (mask & int(MaskBit.BAD) != 0).any(axis=0).sum() == SURVEY.bad_columns
    assert len(ids) == 2
    listed = (survey.template_dir.parent / "events.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in listed] == [e.event for e in survey.exposures]


def test_truth_places_agree_with_the_headers(survey: SimulatedSurvey) -> None:
    for exposure in survey.exposures:
        _, header = _open(exposure.event["science_uri"])
        x, y = WCS(header).all_world2pix(exposure.truth["ra"], exposure.truth["dec"], 0)
        np.testing.assert_allclose(x, exposure.truth["x"], atol=1e-3)
        np.testing.assert_allclose(y, exposure.truth["y"], atol=1e-3)
        table = Table.read(
            survey.template_dir.parent / "truth" / f"{exposure.event['exposure_id']}.ecsv"
        )
        assert len(table) == len(exposure.truth)
    first, second = (np.asarray(e.truth["x"]) for e in survey.exposures)
    assert np.abs(first - second).max() > 0.5  # dithered


def test_changing_sources_change_by_their_stated_flux(survey: SimulatedSurvey) -> None:
    """Aperture photometry of science minus template, each on its own pixels and scale."""
    template, header = fits.getdata(survey.template_dir / "template.fits", header=True)
    template_wcs = WCS(header)
    pulls = []
    kinds = set()
    for exposure in survey.exposures:
        science, _ = _open(exposure.event["science_uri"])
        mask, _ = _open(exposure.event["mask_uri"])
        scale = 10.0 ** (0.4 * (exposure.zero_point - header["MAGZP"]))
        for row in exposure.truth:
            column, line = round(row["x"]), round(row["y"])
            if row["snr"] < 5.0 or mask[line - 9 : line + 10, column - 9 : column + 10].any():
                continue
            tx, ty = template_wcs.all_world2pix(row["ra"], row["dec"], 0)
            now, area = _aperture(science, row["x"], row["y"])
            then, _ = _aperture(template, float(tx), float(ty))
            noise = np.hypot(np.sqrt(area * 170.0 + abs(now) / 2.0), 0.02 * abs(now))
            pulls.append((now - then * scale - row["flux"]) / noise)
            kinds.add((row["kind"], row["flux"] > 0))
    assert len(pulls) >= 10
    assert {("transient", True), ("variable", False)} <= kinds
    assert abs(np.mean(pulls)) < 1.0
    assert np.std(pulls) < 2.0
    assert np.abs(pulls).max() < 6.0


def _aperture(image: np.ndarray, x: float, y: float) -> tuple[float, float]:
    rows, columns = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    radius = np.hypot(columns - x, rows - y)
    inside = radius < 8.0
    sky = np.median(image[(radius > 12.0) & (radius < 24.0)])
    return float((image[inside] - sky).sum()), float(inside.sum())


def test_template_is_deeper_and_calibrated(survey: SimulatedSurvey) -> None:
    data, header = fits.getdata(survey.template_dir / "template.fits", header=True)
    weight = fits.getdata(survey.template_dir / "template.weight.fits")
    mask = fits.getdata(survey.template_dir / "template.mask.fits")
    assert header["MAGZP"] == SURVEY.template_zero_point
    assert header["FILTER"] == SURVEY.band
    assert data.shape[0] > SURVEY.shape[0]
    assert ((weight > 0) == (mask == 0)).all()
    sky = data < np.percentile(data, 40)
    # The lower part of a Gaussian: its own scatter is known from the weight.
    floor = np.percentile(data, 16) - np.percentile(data, 50)
    assert -floor == pytest.approx(np.median(1 / np.sqrt(weight[sky & (weight > 0)])), rel=0.25)


def test_survey_follows_from_its_seed(survey: SimulatedSurvey, tmp_path: Path) -> None:
    again = simulate_survey(SURVEY, tmp_path)
    for one, two in zip(survey.exposures, again.exposures, strict=True):
        np.testing.assert_array_equal(
            _open(one.event["science_uri"])[0], _open(two.event["science_uri"])[0]
        )
        np.testing.assert_array_equal(one.truth["flux"], two.truth["flux"])
