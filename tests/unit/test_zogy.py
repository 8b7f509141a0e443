"""ZOGY against the equations written out, against theory, and against simulated truth."""

from dataclasses import replace

import numpy as np
import pytest

from core.detection import significance
from core.errors import SubtractionFailed
from core.image import Image, MaskBit
from core.polynomials import terms
from core.psf import PSFModel, fwhm_of, gaussian_psf
from core.simulate import PairSettings
from core.subtraction.pair import Pair
from core.subtraction.zogy import ZogySettings, subtract
from core.subtraction.zogy.boxes import star_boxes
from core.subtraction.zogy.images import filled, known
from core.subtraction.zogy.mask import disturbed
from core.subtraction.zogy.matching import Matching, MatchingOptions, match
from core.subtraction.zogy.psf import denoised
from core.subtraction.zogy.tiles import TileGrid, TileInputs, subtract_tiles
from core.subtraction.zogy.transform import (
    WHITE_FLOOR,
    FittedPSF,
    TileModel,
    Trust,
    Workspace,
    difference_psf,
    spectrum_of,
    subtract_tile,
    tile_kernels,
    trust_in,
)
from tests.prepared_pair import make_pair

EVERYWHERE = Trust(10.0, 10.0, 0.0)


def gaussian_stamp(fwhm, half=12, elongation=1.0):
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    sigma = fwhm / 2.3548
    stamp = np.exp(-0.5 * ((x / sigma) ** 2 + (y / (sigma * elongation)) ** 2))
    return stamp / stamp.sum()


def still(stamp):
    return np.stack([stamp, np.zeros_like(stamp), np.zeros_like(stamp)])


def model_of(science, template, rho, shift=(0.0, 0.0)):
    return TileModel(
        still(science), still(template), rho, (0.0, 0.0), shift, ((0.0, 0.0), (0.0, 0.0)),
        EVERYWHERE, EVERYWHERE,
    )  # fmt: skip


def tile_of(science, template, model):
    """Subtract two images as one tile."""
    space = Workspace(science.shape, science.shape[0])
    spectra = [
        spectrum_of(image, out)
        for image, out in zip((science, template), space.images, strict=True)
    ]
    return subtract_tile(*spectra, model, slice(None), space)


def naive_transform(stamp, shape):
    """Transform of a stamp centred on pixel (0, 0), term by term."""
    half = stamp.shape[0] // 2
    ky, kx = np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), indexing="ij")
    total = np.zeros(shape, dtype=complex)
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            total += stamp[j + half, i + half] * np.exp(-2j * np.pi * (ky * j + kx * i))
    return total


def naive_zogy(science, template, p_n, p_r, sigma_n, sigma_r, beta, shift):
    """Equations 13, 14, 17 and 42 as they are printed, in float64, with F_n = 1, F_r = 1 / beta."""
    shape = science.shape
    f_n, f_r = 1.0, 1.0 / beta
    pn = naive_transform(p_n, shape) + WHITE_FLOOR
    pr = naive_transform(p_r, shape) + WHITE_FLOOR
    ky, kx = np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), indexing="ij")
    n = np.fft.fft2(science)
    r = np.fft.fft2(template) * np.exp(2j * np.pi * (kx * shift[0] + ky * shift[1]))
    root = np.sqrt(sigma_n**2 * f_r**2 * np.abs(pr) ** 2 + sigma_r**2 * f_n**2 * np.abs(pn) ** 2)
    f_d = f_r * f_n / np.sqrt(sigma_n**2 * f_r**2 + sigma_r**2 * f_n**2)
    d = (f_r * pr * n - f_n * pn * r) / root
    p_d = f_r * f_n * pr * pn / (f_d * root)
    s = f_d * d * np.conj(p_d)
    f_s = float(np.mean((f_r * f_n * np.abs(pr * pn) / root) ** 2))
    return np.fft.ifft2(d / f_d).real, np.fft.ifft2(s).real / f_s, np.fft.ifft2(p_d).real


def test_tile_agrees_with_the_equations_written_out():
    rng = np.random.default_rng(3)
    shape = (60, 72)
    p_n, p_r = gaussian_stamp(3.1, 8, 1.1), gaussian_stamp(2.4, 8)
    sigma_n, sigma_r, beta, shift = 7.0, 2.0, 0.8, (0.3, -0.2)
    science = rng.normal(0, sigma_n, shape)
    template = rng.normal(0, sigma_r, shape)
    science[20:37, 30:47] += 5000 * p_n
    d, flux, p_d = naive_zogy(science, template, p_n, p_r, sigma_n, sigma_r, beta, shift)
    rho = sigma_n / (beta * sigma_r)
    model = model_of(p_n, p_r, rho, shift)
    planes = tile_of(
        (science / sigma_n).astype(np.float32), (template / sigma_r).astype(np.float32), model
    )
    gain = sigma_n * np.sqrt(1 + 1 / rho**2)
    np.testing.assert_allclose(gain * planes.difference[0], d, atol=2e-4 * np.abs(d).max())
    ours = sigma_n * planes.score[0] / planes.flux_norm[0]
    np.testing.assert_allclose(ours, flux, atol=2e-5 * np.abs(flux).max())
    assert ours[28, 38] == pytest.approx(5000, abs=4 * sigma_n * 4)
    np.testing.assert_allclose(difference_psf(model, shape), p_d / p_d.sum(), rtol=2e-4, atol=1e-6)


def test_kernels_are_what_the_tile_does():
    rng = np.random.default_rng(4)
    shape = (48, 64)
    model = model_of(gaussian_stamp(3.3, 8), gaussian_stamp(2.2, 8), 2.5, (0.25, 0.4))
    science, template = rng.normal(0, 1, (2, *shape)).astype(np.float32)
    planes = tile_of(science, template, model)
    kernels = np.fft.fft2(tile_kernels(model, shape))
    for ours, first, second in ((planes.difference[0], 0, 1), (planes.score[0], 2, 3)):
        expected = np.fft.ifft2(
            kernels[first] * np.fft.fft2(science) - kernels[second] * np.fft.fft2(template)
        ).real
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_slopes_within_a_tile_are_the_derivatives():
    rng = np.random.default_rng(5)
    science, template = rng.normal(0, 1, (2, 64, 64)).astype(np.float32)
    broad, narrow, step = gaussian_stamp(3.3), gaussian_stamp(2.8), 0.05
    wider = gaussian_stamp(3.5) - broad
    sharper = gaussian_stamp(2.7) - narrow
    zero = np.zeros_like(broad)
    model = TileModel(
        np.stack([broad, wider, zero]), np.stack([narrow, sharper, zero]), 2.0, (0.1, 0.0),
        (0.1, 0.2), ((0.3, -0.2), (0.0, 0.0)), EVERYWHERE, EVERYWHERE,
    )  # fmt: skip
    planes = tile_of(science, template, model)
    moved = [
        tile_of(
            science,
            template,
            model_of(
                broad + u * wider, narrow + u * sharper, 2.0 * np.exp(-0.1 * u),
                (0.1 + 0.3 * u, 0.2 - 0.2 * u),
            ),
        )
        for u in (-step, step)
    ]  # fmt: skip
    for name in ("difference", "score"):
        numeric = (getattr(moved[1], name)[0] - getattr(moved[0], name)[0]) / (2 * step)
        analytic = getattr(planes, name)[1]
        assert np.std(numeric - analytic) < 0.02 * np.std(analytic)
    numeric = (moved[1].flux_norm[0] - moved[0].flux_norm[0]) / (2 * step)
    assert planes.flux_norm[1] == pytest.approx(numeric, rel=0.01)


def blank_inputs(shape, tiles, seed=0):
    """White noise whose variance doubles from left to right, and PSFs that vary."""
    rng = np.random.default_rng(seed)
    rise = np.linspace(1, 2, shape[1])[None, :] * np.ones(shape)
    science_variance = (100.0 * rise).astype(np.float32)
    template_variance = (16.0 * rise).astype(np.float32)
    images = []
    for name, variance, fwhm in (("n", science_variance, 3.6), ("r", template_variance, 2.8)):
        narrow, wide = gaussian_stamp(fwhm), gaussian_stamp(1.06 * fwhm)
        psf = PSFModel(
            np.stack([narrow, wide - narrow, 0 * narrow]).astype(np.float32), 1, shape, fwhm
        )
        data = (rng.normal(0, 1, shape) * np.sqrt(variance)).astype(np.float32)
        mask = np.zeros(shape, dtype=np.uint16)
        images.append(known(Image(data, mask, variance, psf=psf, name=name), fwhm))
    grid = TileGrid(shape, tiles, 36)
    boxes = [np.s_[t.y0 : t.y1, t.x0 : t.x1] for t in grid]
    noise = [np.array([np.sqrt(np.median(i.variance[box])) for box in boxes]).reshape(tiles)
             for i in images]  # fmt: skip
    matching = Matching(np.array([0.8]), np.zeros((2, 1)), 0, 0, shape, 0.0, 0.0, 0, 0)
    return TileInputs(images[0], images[1], noise[0], noise[1], matching), grid


def test_blank_sky_is_white_and_of_unit_variance_on_an_oblong_frame():
    inputs, grid = blank_inputs((420, 700), (2, 3))
    planes = subtract_tiles(inputs, grid, threads=2)
    inner = np.s_[15:-15, 15:-15]
    scaled = (planes.difference / np.sqrt(planes.difference_variance))[inner]
    assert scaled.var() == pytest.approx(1.0, abs=0.02)
    for lag in (1, 2, 3):
        assert abs(np.mean(scaled[lag:] * scaled[:-lag])) < 0.012
        assert abs(np.mean(scaled[:, lag:] * scaled[:, :-lag])) < 0.012
    # S is smooth: fewer independent values, so a wider tolerance
    score = (planes.flux / np.sqrt(planes.flux_variance))[inner]
    assert score.var() == pytest.approx(1.0, abs=0.05)
    assert score.mean() == pytest.approx(0.0, abs=0.03)
    left, right = score[:, :200].var(), score[:, -200:].var()
    assert left == pytest.approx(right, abs=0.15)


def test_tiles_join_without_a_seam():
    inputs, grid = blank_inputs((300, 420), (1, 1))
    finer, cut = blank_inputs((300, 420), (3, 4))
    one = subtract_tiles(inputs, grid, threads=1)
    many = subtract_tiles(replace(finer, science_noise=np.full((3, 4), inputs.science_noise[0, 0]),
                                  template_noise=np.full((3, 4), inputs.template_noise[0, 0])),
                          cut, threads=2)  # fmt: skip
    noise = np.sqrt(one.difference_variance)
    apart = np.abs(many.difference - one.difference) / noise
    assert np.percentile(apart, 99) < 0.05
    jumps = [np.abs(np.diff(apart[:, [x - 1, x]], axis=1)).mean() for x in (105, 210, 315)]
    assert max(jumps) < 0.03


def true_psf(simulated, shape, half):
    """The PSF that the simulation used, as a model of third order."""
    ny, nx = shape
    places = [(x, y) for x in np.linspace(0, nx - 1, 6) for y in np.linspace(0, ny - 1, 6)]
    stamps = np.stack([simulated.at(x, y, 2 * half + 1).ravel() for x, y in places])
    at = np.array(places)
    basis = terms(3, at[:, 0], at[:, 1], shape)
    planes = np.linalg.lstsq(basis, stamps, rcond=None)[0].reshape(-1, 2 * half + 1, 2 * half + 1)
    return PSFModel(planes.astype(np.float32), 3, shape, fwhm_of(planes[0]))


@pytest.fixture(scope="module")
def subtracted():
    settings = PairSettings(
        shape=(560, 720), seed=11, star_density=2500, n_transients=30, snr_range=(15, 50),
        cloud_gradient=0.2, shift=(0.4, -0.3),
    )  # fmt: skip
    truth, pair = make_pair(settings)
    # what the engine does, not what a PSF measured on a small frame is good for
    pair = replace(
        pair,
        science=replace(pair.science, psf=true_psf(truth.science_psf, pair.shape, 20)),
        template=replace(pair.template, psf=true_psf(truth.template_psf, pair.shape, 20)),
    )
    return truth, pair, subtract(pair, threads=2)


def far_from_transients(truth, reach=14):
    clear = np.ones(truth.science.shape, dtype=bool)
    for row in truth.transients:
        y, x = round(row["y"]), round(row["x"])
        clear[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = False
    return clear


def test_flux_scale_and_shift_follow_the_frame(subtracted):
    truth, _, difference = subtracted
    matching = difference.kernel.matching
    nx = truth.science.shape[1]
    for x in (0.2 * nx, 0.5 * nx, 0.8 * nx):
        expected = truth.flux_scale * (1 - 0.2 * x / nx)
        assert matching.flux_scale_at(x, 280.0) == pytest.approx(expected, rel=0.015)
        assert matching.shift_at(x, 280.0) == pytest.approx((0.4, -0.3), abs=0.02)
    assert difference.quality.kernel_sum == pytest.approx(0.9 * truth.flux_scale, rel=0.02)


def test_fluxes_of_injected_sources_and_their_errors(subtracted):
    truth, _, difference = subtracted
    result = difference.kernel
    pulls, ratios = [], []
    for row in truth.transients:
        y, x = round(row["y"]), round(row["x"])
        if difference.mask[y - 6 : y + 7, x - 6 : x + 7].any():
            continue
        box = result.flux[y - 1 : y + 2, x - 1 : x + 2]
        pulls.append((box.max() - row["flux"]) / result.flux_err[y, x])
        ratios.append(box.max() / row["flux"])
    assert len(pulls) >= 20
    assert np.median(ratios) == pytest.approx(1.0, abs=0.02)
    assert abs(np.mean(pulls)) < 0.6
    assert 0.6 < np.std(pulls) < 1.4


def test_stars_vanish_and_the_significance_is_of_unit_variance(subtracted):
    truth, pair, difference = subtracted
    clear = far_from_transients(truth) & (difference.mask == 0)
    stars = np.zeros_like(clear)
    for x, y in zip(pair.stars.sources.x, pair.stars.sources.y, strict=True):
        stars[max(0, round(y) - 4) : round(y) + 5, max(0, round(x) - 4) : round(x) + 5] = True
    assert np.mean(difference.scaled[clear & stars] ** 2) < 1.15
    snr = difference.kernel.significance[clear & ~stars]
    assert np.std(np.clip(snr, -5, 5)) == pytest.approx(1.0, abs=0.06)
    assert np.median(snr) == pytest.approx(0.0, abs=0.12)
    assert np.abs(snr).max() < 6


def test_detection_takes_the_map_of_the_engine(subtracted):
    _, _, difference = subtracted
    found = significance(difference)
    np.testing.assert_allclose(
        found.snr * found.widening, difference.kernel.significance, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(found.flux_err, difference.kernel.flux_err * found.widening, 1e-5)


def test_the_psf_of_the_difference_is_that_of_a_source(subtracted):
    truth, _, difference = subtracted
    psf = difference.psf.at(360, 280)
    assert psf.sum() == pytest.approx(1.0, abs=1e-3)
    total, weight = np.zeros((11, 11)), 0.0
    for row in truth.transients:
        y, x = round(row["y"]), round(row["x"])
        box = np.s_[y - 5 : y + 6, x - 5 : x + 6]
        if abs(row["y"] - y) > 0.25 or abs(row["x"] - x) > 0.25 or difference.mask[box].any():
            continue
        total += difference.data[box]
        weight += row["flux"]
    assert weight > 0
    half = psf.shape[0] // 2
    expected = psf[half - 5 : half + 6, half - 5 : half + 6]
    assert np.corrcoef(total.ravel(), expected.ravel())[0, 1] > 0.97


def test_light_beyond_the_stamp_is_missing_in_the_psf_of_the_difference_too():
    whole = difference_psf(model_of(gaussian_stamp(3.6), gaussian_stamp(2.8), 0.4), (64, 64))
    cut = difference_psf(model_of(0.95 * gaussian_stamp(3.6), gaussian_stamp(2.8), 0.4), (64, 64))
    assert whole.sum() == pytest.approx(1, abs=1e-3)
    # with a template of no noise, D is the science image: 5 % of a star are lost to its stamp
    alone = difference_psf(model_of(0.95 * gaussian_stamp(3.6), gaussian_stamp(2.8), 50), (64, 64))
    assert alone.sum() == pytest.approx(0.95, abs=1e-3)
    # else the filter changes with it: by the two weights at zero frequency
    gain = np.sqrt(1 + 0.4**2) / np.sqrt(0.4**2 + 0.95**2)
    assert cut.sum() == pytest.approx(0.95 * gain, abs=1e-3)


def test_the_psf_of_the_difference_varies_within_a_tile(subtracted):
    truth, pair, difference = subtracted
    alone = subtract(pair, ZogySettings(tiles=(1, 1)), threads=2)
    ny, nx = pair.shape
    for x, y in ((60, 50), (nx - 60, 50), (60, ny - 50), (nx - 60, ny - 50)):
        wide = fwhm_of(truth.science_psf.at(x, y, 41))
        middle = fwhm_of(truth.science_psf.at(0.5 * nx, 0.5 * ny, 41))
        for result in (difference, alone):
            ratio = fwhm_of(result.psf.at(x, y)) / fwhm_of(result.psf.at(0.5 * nx, 0.5 * ny))
            assert ratio == pytest.approx(wide / middle, abs=0.02)


def test_refinement_and_fit_take_out_what_a_wrong_psf_leaves():
    settings = PairSettings(shape=(400, 420), seed=5, star_density=3500, n_transients=0)
    _, pair = make_pair(settings)
    planes = pair.science.psf.coefficients.astype(np.float64)
    half = pair.science.psf.size // 2
    mixed = planes.copy()
    mixed[0] = 0.6 * planes[0] + 0.4 * gaussian_stamp(1.3 * pair.science_fwhm, half)
    wrong = replace(pair.science.psf, coefficients=mixed.astype(np.float32))
    pair = replace(pair, science=replace(pair.science, psf=wrong))
    alone = ZogySettings(fit_psf=False, refine=False)
    rough = subtract(pair, alone, threads=2).quality
    refined = subtract(pair, replace(alone, refine=True), threads=2).quality
    fitted = subtract(pair, replace(alone, fit_psf=True), threads=2).quality
    assert rough.star_chi2 > 1.5
    assert refined.star_chi2 - 1 < 0.65 * (rough.star_chi2 - 1)
    assert fitted.star_chi2 < 1.1


@pytest.mark.parametrize("which", ["science", "template"])
def test_masked_pixels_do_not_leak(which, subtracted):
    _, pair, before = subtracted
    image = getattr(pair, which)
    data, mask = image.data.copy(), image.mask.copy()
    free = np.argwhere(
        (before.mask[40:-40, 40:-40] == 0) & (np.abs(before.convolved[40:-40, 40:-40]) < 20)
    )
    y, x = free[len(free) // 2] + 40
    data[y, x], mask[y, x] = 1e6, MaskBit.BAD
    changed = replace(pair, **{which: replace(image, data=data, mask=mask)})
    after = subtract(changed, threads=2)
    bit = MaskBit.BAD if which == "science" else MaskBit.TEMPLATE_BAD
    assert after.mask[y, x] & bit
    box = np.s_[y - 8 : y + 9, x - 8 : x + 9]
    apart = np.abs(after.data - before.data)[box] / before.noise[box]
    apart[after.mask[box] != 0] = 0
    assert apart.max() < 1.0


def test_a_bad_column_through_a_star_is_filled_from_the_other_image(subtracted):
    truth, pair, _ = subtracted
    bad = pair.template.bad | pair.science.bad
    for x, y in zip(pair.stars.sources.x, pair.stars.sources.y, strict=True):
        x, y = round(x), round(y)
        if not bad[y - 12 : y + 13, x - 12 : x + 13].any() and 250 < x < 450:
            break
    column = np.zeros(pair.shape, dtype=bool)
    column[y - 10 : y + 11, x] = True
    mask = pair.science.mask.copy()
    mask[column] = MaskBit.BAD
    data = np.where(column, np.float32(0), pair.science.data)
    science = known(replace(pair.science, data=data, mask=mask), 3.6)
    scale = truth.flux_scale * 0.9
    whole, _ = filled(science, known(pair.template, 2.6), scale, (0.4, -0.3))
    core = np.s_[y - 4 : y + 5, x]
    assert pair.science.data[core].max() > 50 * np.sqrt(pair.science.variance.min())
    error = whole.data[core] - pair.science.data[core]
    assert np.abs(error).max() < 0.08 * pair.science.data[core].max()


def test_what_a_hole_disturbs_is_found_and_no_more():
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:120, 0:120]
    score = rng.normal(0, 1, (120, 120)).astype(np.float32)
    hole = np.hypot(y - 60, x - 60) < 4
    mask, one = hole.astype(np.uint16), np.ones_like(score)
    calm = disturbed(hole, score, one, mask, reach=40, step=2)
    assert calm.sum() == hole.sum()
    halo = np.hypot(y - 60, x - 60) < 14
    score[halo] += 8 * np.where((x + y)[halo] % 2, 1, -1)
    found = disturbed(hole, score, one, mask, reach=40, step=2)
    assert found[halo].all()
    assert not found[np.hypot(y - 60, x - 60) > 20].any()


def test_a_long_column_is_masked_where_it_disturbs_and_its_neighbours_are_kept():
    rng = np.random.default_rng(2)
    y, x = np.mgrid[0:500, 0:160]
    score = rng.normal(0, 1, (500, 160)).astype(np.float32)
    column = (x == 80) & (y > 20) & (y < 480)
    star = np.hypot(y - 250, x - 80) < 14
    score[star] += 8 * np.where((x + y)[star] % 2, 1, -1)
    new = np.hypot(y - 100, x - 100) < 4
    touched = np.hypot(y - 250, x - 95) < 5
    score[new | touched] = 20.0
    found = disturbed(
        column, score, np.ones_like(score), column.astype(np.uint16), reach=40, step=2
    )
    assert (found & star).sum() > 0.9 * star.sum()
    assert found[touched].all()
    assert not (found & new).any()
    far = (np.abs(y - 250) > 90) & ~column
    assert (found & far).sum() < 0.01 * far.sum()


def test_denoising_keeps_the_psf_and_takes_its_noise():
    rng = np.random.default_rng(2)
    clean = gaussian_stamp(3.6, 13)
    noisy = clean + rng.normal(0, 2e-4, clean.shape)
    noisy /= noisy.sum()
    psf = PSFModel(noisy[None].astype(np.float32), 0, (500, 500), 3.6, n_stars=50)
    smooth = denoised(psf).coefficients[0]
    assert smooth.sum() == pytest.approx(1.0, abs=1e-5)
    assert np.std(smooth - clean) < 0.6 * np.std(noisy - clean)
    np.testing.assert_allclose(smooth[11:16, 11:16], noisy[11:16, 11:16], atol=3e-5)
    analytic = gaussian_psf(3.0, (100, 100))
    assert denoised(analytic) is analytic


def test_coma_is_not_taken_for_noise():
    rng = np.random.default_rng(7)
    y, x = np.mgrid[-13:14, -13:14] / 1.5
    round_ = np.exp(-0.5 * (x**2 + y**2))
    comatic = round_ * (1 + 0.08 * x * (x**2 + y**2 - 4))
    noise = rng.normal(0, 1, round_.shape) * 1e-5
    level = 1e-5 * round_.shape[0]
    for stamp, least, most in ((comatic, 0.25, 0.6), (round_, 0.0, 0.12)):
        stamp = (stamp / stamp.sum() + noise).astype(np.float32)[None]
        psf = FittedPSF(stamp, 0, (500, 500), 3.5, 50, noise=level)
        assert least <= trust_in(psf).odd_cutoff <= most
        assert 0.3 < trust_in(psf).cutoff < 0.6
    unknown = replace(psf, noise=0.0, coefficients=stamp)
    assert trust_in(unknown).noise == pytest.approx(level, rel=0.5)


def test_fixed_scale_and_shift_are_used_as_given():
    settings = PairSettings(shape=(300, 300), seed=8, star_density=2500, n_transients=0)
    _, pair = make_pair(settings)
    options = MatchingOptions(fit_scale=False, fit_shift=False, scale=0.7, shift=(0.1, 0.2))
    boxes = star_boxes(known(pair.science, 3.6), known(pair.template, 2.6), pair.stars.sources)
    matching = match(boxes, options, pair.shape)
    assert matching.flux_scale_at(5, 250) == pytest.approx(0.7)
    assert matching.shift_at(5, 250) == pytest.approx((0.1, 0.2))
    difference = subtract(pair, ZogySettings(fit_scale=False, scale=0.7, refine=False), threads=2)
    assert difference.quality.kernel_sum == pytest.approx(0.7)


def test_what_cannot_be_subtracted_is_said_clearly():
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 1, (64, 80)).astype(np.float32) for _ in range(2)]
    mask = np.zeros((64, 80), np.uint16)
    images = [Image(n, mask, np.ones_like(n), name="blank") for n in noise]
    with pytest.raises(SubtractionFailed, match="flux scale cannot be measured"):
        subtract(Pair(images[0], images[1], 3.0, 2.5))
    with pytest.raises(SubtractionFailed, match="needs the noise of the science image"):
        subtract(Pair(replace(images[0], variance=None), images[1], 3.0, 2.5))
    hidden = replace(images[0], mask=np.full_like(mask, MaskBit.BAD))
    with pytest.raises(SubtractionFailed, match="leave no usable pixel"):
        subtract(Pair(hidden, images[1], 3.0, 2.5))
    silent = replace(images[0], variance=np.zeros_like(noise[0]))
    with pytest.raises(SubtractionFailed, match="check its noise map"):
        subtract(Pair(silent, images[1], 3.0, 2.5), ZogySettings(fit_scale=False, fit_shift=False))
