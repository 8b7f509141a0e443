"""The projection against a brute-force sum, against reproject, and against what physics demands."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, Sip
from reproject import reproject_interp
from scipy.ndimage import binary_erosion, map_coordinates
from scipy.special import erf

from core.errors import UnusableInput
from core.image import ExposureFacts, Image, MaskBit
from core.pixel_mapping import GridMapping, SkyMapping, sky_mapping
from core.resample import resample, resample_affine, shift_image
from tests.shared_data import shared_data

PIXEL = 2.8e-4  # degrees


def tan(ra=150.0, dec=2.0, *, shape=(200, 220), rotation=0.0, scale=1.0, mirror=False, at=None):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = at or [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    c, s = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    turn = np.array([[-c, s], [s, c]])
    if mirror:
        turn[:, 0] *= -1
    wcs.wcs.cd = PIXEL * scale * turn
    return wcs


def image_of(data, wcs=None, mask=None, variance=None, **facts):
    data = np.ascontiguousarray(data, dtype=np.float32)
    mask = np.zeros(data.shape, np.uint16) if mask is None else mask
    return Image(data, mask, variance, wcs, facts=ExposureFacts(**facts))


def noise(shape=(200, 220), seed=0):
    return np.random.default_rng(seed).normal(100, 10, shape).astype(np.float32)


def gaussian(shape, x, y, fwhm, flux):
    """A star whose pixels hold the integral over them; sigma is large enough for points."""
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    sigma = fwhm / 2.3548
    return flux / (2 * np.pi * sigma**2) * np.exp(
        -((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2)
    )  # fmt: skip


def brute_force(data, sx, sy):
    """Lanczos-3 in float64, point by point; the weights with the least change that keeps cubics."""

    def weights(fraction):
        distance = fraction - np.arange(-2, 4)
        w = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
        moments = np.vander(distance, 4, increasing=True).T
        root = np.sqrt(np.abs(w))
        change = np.linalg.pinv(moments * root) @ ([1, 0, 0, 0] - moments @ w)
        return w + root * change

    out = np.full(sx.shape, np.nan)
    for index in np.ndindex(sx.shape):
        x, y = sx[index], sy[index]
        ix, iy = int(np.floor(x)), int(np.floor(y))
        if 2 <= ix < data.shape[1] - 3 and 2 <= iy < data.shape[0] - 3:
            window = data[iy - 2 : iy + 4, ix - 2 : ix + 4].astype(float)
            out[index] = weights(y - iy) @ window @ weights(x - ix)
    return out


def test_the_same_grid_returns_the_pixels_themselves():
    data, wcs = noise(), tan(rotation=17.0)
    mask = np.zeros(data.shape, np.uint16)
    mask[5, 5] = MaskBit.BAD
    image = image_of(data, wcs, mask, np.full(data.shape, 4.0, np.float32))
    result = resample(image, wcs, image.shape)
    np.testing.assert_array_equal(result.data, data)
    np.testing.assert_array_equal(result.mask, mask)
    np.testing.assert_array_equal(result.variance, image.variance)


def test_a_shift_by_whole_pixels_is_exact():
    data = noise()
    source = tan(at=[110, 100])
    target = tan(at=[110 + 7, 100 - 3])
    result = resample(image_of(data, source), target, data.shape)
    np.testing.assert_array_equal(result.data[:-3, 7:], data[3:, :-7])
    assert (result.mask[:-3, 7:] == 0).all()
    assert (result.mask[-3:] == MaskBit.NO_DATA).all()
    assert (result.mask[:, :7] == MaskBit.NO_DATA).all()
    assert np.isfinite(result.data).all()


@pytest.mark.parametrize(
    "matrix",
    [
        [[1, 0, 0.3], [0, 1, -0.7]],
        [[0.99, 0.08, 3.0], [-0.08, 0.99, 20.0]],
        [[-1.01, 0.02, 95.0], [0.02, 1.01, 0.5]],
        [[0.01, -1.0, 80.0], [1.0, 0.01, 0.0]],
    ],
)
def test_against_the_brute_force_sum(matrix):
    data = noise((90, 100))
    shape = (80, 90)
    result = resample_affine(image_of(data), matrix, shape)
    yy, xx = np.mgrid[: shape[0], : shape[1]].astype(float)
    sx, sy = np.einsum("ij,jyx->iyx", np.array(matrix), np.stack([xx, yy, np.ones(shape)]))
    expected = brute_force(data, sx, sy) * abs(np.linalg.det(np.array(matrix)[:, :2]))
    inside = np.isfinite(expected)
    assert inside.sum() > 1000
    np.testing.assert_allclose(result.data[inside], expected[inside], rtol=1e-5)
    assert not result.mask[inside].any()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "matrix",
    [
        [[0.99, 0.15, 3.0], [-0.15, 0.99, 20.0]],
        [[-1.1, 0.1, 95.0], [0.1, 1.1, 0.5]],
        [[0.4, 0, 50.0], [0, 0.4, 50.0]],
        [[0.7, -0.7, 40.0], [0.7, 0.7, 0.0]],
    ],
)
def test_other_scales_and_angles_against_the_splines_of_scipy(matrix, threads):
    data = noise((90, 100))
    shape = (80, 90)
    result = resample_affine(image_of(data), matrix, shape, threads=threads)
    yy, xx = np.mgrid[: shape[0], : shape[1]].astype(float)
    sx, sy = np.einsum("ij,jyx->iyx", np.array(matrix), np.stack([xx, yy, np.ones(shape)]))
    expected = map_coordinates(data.astype(float), [sy, sx], order=5, mode="mirror")
    expected *= abs(np.linalg.det(np.array(matrix)[:, :2]))
    inside = (sx > 3) & (sx < 96) & (sy > 3) & (sy < 86)
    assert inside.sum() > 1000
    np.testing.assert_allclose(result.data[inside], expected[inside], rtol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_against_reproject_on_a_smooth_field(threads):
    source, target = tan(), tan(150.004, 2.003, rotation=12.0, scale=0.97)
    yy, xx = np.mgrid[:200, :220]
    smooth = 500 + 40 * np.sin(xx / 25) * np.cos(yy / 31) + 0.1 * xx
    result = resample(
        image_of(smooth, source), target, (200, 220), threads=threads, flux="surface_brightness"
    )
    theirs, covered = reproject_interp(
        (smooth, source), target, shape_out=(200, 220), order="bicubic"
    )
    # Their spline feels the edge of the image for some pixels.
    inside = binary_erosion((covered > 0) & (result.mask == 0), iterations=12)
    assert inside.sum() > 25_000
    sigma = 10.0  # a frame with such a sky would have at least the noise of `noise`
    assert np.abs(result.data - theirs)[inside].max() < 1e-3 * sigma


@pytest.mark.parametrize(
    "target",
    [
        tan(rotation=30.0),
        tan(mirror=True, rotation=5.0),
        tan(scale=1.3),
        tan(scale=0.6),
        tan(scale=1.9, rotation=44.0),
        tan(scale=5.0),
    ],
)
def test_star_fluxes_are_conserved(target):
    rng = np.random.default_rng(2)
    places = np.stack([rng.uniform(80, 140, 60), rng.uniform(70, 130, 60)], axis=1)
    data = sum(gaussian((200, 220), x, y, 3.2, 1e4) for x, y in places)
    result = resample(image_of(data, tan()), target, (200, 220))
    covered = result.mask == 0
    assert result.data[covered].sum(dtype=float) == pytest.approx(60e4, rel=1e-4)
    one = gaussian((200, 220), 110.3, 99.6, 3.2, 1e4)
    result = resample(image_of(one, tan()), target, (200, 220))
    assert result.data[result.mask == 0].sum(dtype=float) == pytest.approx(1e4, rel=1e-4)


def pixel_star(shape, x, y, fwhm):
    """A star of flux 1 whose pixels hold the integral over them."""
    width = fwhm / 2.3548 * np.sqrt(2)

    def along(length, centre):
        edges = (np.arange(length + 1) - 0.5 - centre) / width
        return np.diff(erf(edges)) / 2

    return np.outer(along(shape[0], y), along(shape[1], x))


@pytest.mark.parametrize(
    "scale",
    [
        0.3,
        0.55,
        0.75,
        0.8,
        0.85,
        0.9,
        0.967,
        0.98,
        1.0,
        1.02,
        1.034,
        1.1,
        1.14,
        1.2,
        1.3,
        1.95,
        5.0,
    ],
)
def test_the_flux_of_the_worst_star_is_conserved(scale):
    # Well sampled in the coarser of the grids, at any angle and any place between pixels.
    fwhm = 2.5 * max(1.0, scale)
    rng = np.random.default_rng(int(100 * scale))
    side, many = int(6 * fwhm + 24), int((4.8 * fwhm + 14) / scale)
    worst = 0.0
    for angle in (0.0, 4.0, 7.0, 14.0, 33.0, 45.0):
        for flux in ("pixel", "surface_brightness"):
            x, y = (side - 1) / 2 + rng.uniform(-0.5, 0.5, 2)
            star = 1e4 * pixel_star((side, side), x, y, fwhm)
            c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
            turn = scale * np.array([[c, -s], [s, c]])
            start = [x, y] - turn @ ((many - 1) / 2 + rng.uniform(-0.5, 0.5, 2))
            matrix = np.column_stack([turn, start])
            result = resample_affine(image_of(star), matrix, (many, many), flux=flux)
            total = result.data.sum(dtype=float) * (1 if flux == "pixel" else scale**2)
            worst = max(worst, abs(total / star.sum() - 1))
    assert worst < 1e-4


def test_surface_brightness_is_left_as_it_is():
    flat = np.full((200, 220), 7.0)
    for scale in (0.5, 1.2, 3.0):
        result = resample(
            image_of(flat, tan()), tan(scale=scale), (60, 60), flux="surface_brightness"
        )
        np.testing.assert_allclose(result.data[result.mask == 0], 7.0, rtol=1e-5)
        result = resample(image_of(flat, tan()), tan(scale=scale), (60, 60))
        np.testing.assert_allclose(result.data[result.mask == 0], 7.0 * scale**2, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.3, 2.0, 5.0])
def test_the_variance_is_that_of_sums_over_pixels(scale):
    # Sums over blocks must scatter as the carried variance says: that is what it is for.
    shape = (800, 800)
    rng = np.random.default_rng(5)
    image = image_of(
        rng.normal(0, 3, shape), tan(shape=shape), variance=np.full(shape, 9.0, np.float32)
    )
    side = int(750 / scale) // 10 * 10
    target = tan(shape=(side, side), scale=scale, at=[side / 2 + 0.17, side / 2 + 0.31])
    result = resample(image, target, (side, side))
    assert not result.mask.any()
    block = 10
    sums = result.data.reshape(side // block, block, side // block, block).sum(axis=(1, 3))
    expected = float(result.variance.mean()) * block**2
    # Noise power that crosses the border of a block: a per cent at ten pixels. The scatter of the
    # estimate is sqrt(2 / n): 5 % for the 225 blocks of the coarsest grid and 9 % beyond.
    assert sums.var() == pytest.approx(expected, rel=0.03 + 3 * np.sqrt(2 / sums.size))
    assert float(result.variance.mean()) == pytest.approx(9.0 * scale**2, rel=1e-3)


def test_bad_pixels_never_leak():
    data = np.full((60, 60), 100.0)
    mask = np.zeros(data.shape, np.uint16)
    for (y, x), flag in (((20, 20), MaskBit.BAD), ((40, 40), MaskBit.SATURATED)):
        data[y, x] = 1e7
        mask[y, x] = flag
    image = image_of(data, mask=mask)
    for dx, dy in ((0.5, 0.5), (0.1, 0.3), (0.9, 0.45), (0.0, 0.5)):
        result = shift_image(image, dx, dy)
        good = result.mask == 0
        np.testing.assert_allclose(result.data[good][:], 100.0, rtol=1e-5)
        for y, x, flag in ((20, 20, MaskBit.BAD), (40, 40, MaskBit.SATURATED)):
            # The pixel that the bad one lies under is flagged, with its own flag.
            assert result.mask[round(y + dy), round(x + dx)] == flag
    flagged = np.count_nonzero(shift_image(image, 0.5, 0.5).mask & MaskBit.BAD)
    saturated = np.count_nonzero(shift_image(image, 0.5, 0.5).mask & MaskBit.SATURATED)
    assert 4 <= flagged < saturated <= 36


@pytest.mark.parametrize(("scale", "most"), [(1.5, 0.2), (2.5, 0.15), (5.0, 1e-3), (10.0, 0.0)])
def test_single_bad_pixels_do_not_cost_coarse_ones(scale, most):
    rng = np.random.default_rng(4)
    shape, side = (400, 400), int(380 / scale)
    bad = rng.random(shape) < 0.01
    data = np.where(bad, 1e6, 100.0)
    variance = np.where(bad, 1e12, 4.0).astype(np.float32)
    mask = np.where(bad, MaskBit.BAD, 0).astype(np.uint16)
    c, s = scale * np.cos(0.2), scale * np.sin(0.2)
    centre = (side - 1) / 2 * np.array([c - s, c + s])
    matrix = [[c, -s, 199.5 - centre[0]], [s, c, 199.5 - centre[1]]]
    shape = (side, side)
    image = image_of(data, mask=mask, variance=variance)
    result = resample_affine(image, matrix, shape, flux="surface_brightness")
    inner = (slice(side // 5, -side // 5),) * 2
    assert (result.mask[inner] != 0).mean() <= most
    good = result.mask == 0
    np.testing.assert_allclose(result.data[good], 100.0, rtol=1e-5)
    assert np.median(result.variance[good]) == pytest.approx(4 / scale**2, rel=0.1)
    assert result.variance[inner].max() < 3 * 4 / scale**2


@pytest.mark.parametrize("flag", [MaskBit.SATURATED, MaskBit.BAD])
def test_one_of_many_pixels_is_made_up_for_unless_it_is_saturated(flag):
    mask = np.zeros((100, 100), np.uint16)
    mask[50, 50] = flag
    image = image_of(np.full((100, 100), 10.0), mask=mask)
    result = resample_affine(image, [[5.0, 0, 2.0], [0, 5.0, 2.0]], (20, 20))
    assert (result.mask & flag).any() == (flag == MaskBit.SATURATED)


def test_a_bad_pixel_under_a_whole_shift_stays_one_pixel():
    mask = np.zeros((60, 60), np.uint16)
    mask[30, 30] = MaskBit.COSMIC_RAY
    result = shift_image(image_of(noise((60, 60)), mask=mask), 2, -1)
    assert np.argwhere(result.mask & MaskBit.COSMIC_RAY).tolist() == [[29, 32]]


def test_outside_the_source_there_is_no_data():
    image = image_of(noise(), tan())
    result = resample(image, tan(150.03), (200, 220))
    outside = (result.mask & MaskBit.NO_DATA) != 0
    assert 0.2 < outside.mean() < 0.8
    assert np.isfinite(result.data).all()
    assert (resample(image, tan(200.0), (50, 50)).mask == MaskBit.NO_DATA).all()
    assert (resample(image, tan(330.0, -2.0), (50, 50)).mask == MaskBit.NO_DATA).all()


def test_what_was_at_x_is_at_x_plus_dx():
    data = gaussian((80, 80), 40, 30, 4, 1000)
    moved = shift_image(image_of(data), 2.4, -1.3)
    expected = gaussian((80, 80), 42.4, 28.7, 4, 1000)
    np.testing.assert_allclose(moved.data[5:-5, 5:-5], expected[5:-5, 5:-5], atol=8e-3 * data.max())


def test_the_offset_is_in_source_pixels():
    wcs = tan()
    data = gaussian((200, 220), 100.0, 90.0, 4, 1000)
    result = resample(image_of(data, wcs), wcs, (200, 220), offset=(1.5, -0.5))
    expected = gaussian((200, 220), 98.5, 90.5, 4, 1000)
    np.testing.assert_allclose(
        result.data[5:-5, 5:-5], expected[5:-5, 5:-5], atol=8e-3 * data.max()
    )
    affine = resample(image_of(data, wcs), wcs, (200, 220), offset=[[1, 0, 1.5], [0, 1, -0.5]])
    np.testing.assert_array_equal(affine.data, result.data)
    with pytest.raises(ValueError, match="shape"):
        resample(image_of(data, wcs), wcs, (200, 220), offset=[1.0])


def test_facts_follow_the_pixels():
    image = image_of(noise(), tan(), saturation=50000.0, fwhm=4.0, zero_point=25.0, gain=2.0)
    facts = resample(image, tan(scale=2.0), (50, 50)).facts
    assert facts.saturation == pytest.approx(200000, rel=1e-3)
    assert facts.fwhm == pytest.approx(2.0, rel=1e-3)
    assert (facts.zero_point, facts.gain) == (25.0, 2.0)


def test_an_image_without_wcs():
    with pytest.raises(UnusableInput, match="no WCS"):
        resample(image_of(noise()), tan(), (50, 50))


def sip():
    wcs = tan(shape=(600, 700))
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    a, b = np.zeros((4, 4)), np.zeros((4, 4))
    a[2, 0], a[0, 2], a[3, 0], b[1, 1], b[0, 3] = 2e-5, -1e-5, 3e-8, 2e-5, -2e-8
    wcs.sip = Sip(a, b, np.zeros((4, 4)), np.zeros((4, 4)), wcs.wcs.crpix)
    return wcs


def ztf():
    path = shared_data("ztf_quadrant") / "ztf_20200924431759_000655_zr_c13_o_q3_mskimg.fits.gz"
    return WCS(fits.getheader(path))


@pytest.mark.parametrize(
    ("target", "source", "shape"),
    [
        (tan(shape=(600, 700)), sip(), (600, 700)),
        (sip(), tan(rotation=33.0, shape=(600, 700)), (600, 700)),
        (tan(0.0, 10.0), tan(0.02, 10.01, rotation=80.0), (200, 220)),
        (tan(359.999, -45.0), tan(0.001, -45.0, mirror=True), (200, 220)),
        (tan(10.0, 90.0), tan(250.0, 89.99, rotation=120.0), (200, 220)),
        (tan(10.0, -89.98), tan(190.0, -90.0), (200, 220)),
        (tan(scale=5.0), tan(), (200, 220)),
        (tan(scale=0.2), tan(), (200, 220)),
    ],
)
def test_the_control_grid_is_exact_to_a_hundredth_of_a_pixel(target, source, shape):
    mapping = sky_mapping(target, shape, source, shape)
    assert isinstance(mapping, GridMapping)
    found = mapping.rows(0, shape[0])
    exact = SkyMapping(target, source, shape[1]).rows(0, shape[0])
    x, y, _ = exact
    near = (x > -5) & (x < shape[1] + 5) & (y > -5) & (y < shape[0] + 5)
    assert near.any()
    assert np.hypot(*(found - exact)[:2])[near].max() < 0.01
    np.testing.assert_allclose(found[2][near], exact[2][near], rtol=3e-5)


@pytest.mark.parametrize("side", [200, 256, 512])
def test_the_jacobian_is_exact_to_1e_4(side):
    # Radial distortion of third order, 1 % of the frame at its edge: all of it in few cells.
    target = tan(shape=(side, side))
    target.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    a, b = np.zeros((4, 4)), np.zeros((4, 4))
    a[3, 0] = a[1, 2] = b[0, 3] = b[2, 1] = 0.01 * side / (side / 2) ** 3
    target.sip = Sip(a, b, None, None, target.wcs.crpix)
    target.wcs.set()
    around = (side + 80, side + 80)
    source = tan(shape=around)
    mapping = sky_mapping(target, (side, side), source, around)
    assert isinstance(mapping, GridMapping)
    found = mapping.rows(0, side)[2]
    exact = SkyMapping(target, source, side).rows(0, side)[2]
    assert np.abs(found / exact - 1).max() < 1e-4


@pytest.mark.data
def test_the_real_tpv_mapping():
    source = ztf()
    ny, nx = 3080, 3072
    target = tan(57.9974, 35.7463, rotation=181.5, shape=(ny, nx))
    mapping = sky_mapping(target, (ny, nx), source, (ny, nx))
    assert isinstance(mapping, GridMapping)
    for pair in ((target, source), (source, target)):
        mapping = sky_mapping(pair[0], (ny, nx), pair[1], (ny, nx))
        exact = SkyMapping(*pair, nx)
        rng = np.random.default_rng(0)
        rows = rng.integers(0, ny, 20)
        for row in rows:
            x, y = exact(np.arange(nx), np.full(nx, row))
            found = mapping.rows(int(row), int(row) + 1)
            near = (x > -5) & (x < nx + 5) & (y > -5) & (y < ny + 5)
            assert np.hypot(found[0, 0] - x, found[1, 0] - y)[near].max() < 0.01


def test_other_celestial_frames():
    target = tan(150.0, 2.0)
    galactic = WCS(naxis=2)
    galactic.wcs.ctype = ["GLON-TAN", "GLAT-TAN"]
    centre = target.pixel_to_world(110, 100).galactic
    galactic.wcs.crval = [centre.l.deg, centre.b.deg]
    galactic.wcs.crpix = [111, 101]
    galactic.wcs.cdelt = [-PIXEL, PIXEL]
    x, y = SkyMapping(target, galactic, 220)(np.array([10.0, 200.0]), np.array([20.0, 150.0]))
    expected = galactic.world_to_pixel(target.pixel_to_world([10.0, 200.0], [20.0, 150.0]))
    np.testing.assert_allclose([x, y], expected, atol=1e-6)


def test_a_discontinuity_inside_the_frame_is_mapped_pixel_by_pixel():
    # A plate carrée map of the whole sky, whose edge runs through the frame.
    source = WCS(naxis=2)
    source.wcs.ctype = ["RA---CAR", "DEC--CAR"]
    source.wcs.crval, source.wcs.crpix = [0.0, 0.0], [180.5, 90.5]
    source.wcs.cdelt = [-1.0, 1.0]
    yy, xx = np.mgrid[:180, :360]
    sky = np.asarray(source.all_pix2world(xx, yy, 0))
    smooth = 10 + np.cos(np.radians(sky[0])) * np.cos(np.radians(sky[1]))
    target = WCS(naxis=2)
    target.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    target.wcs.crval, target.wcs.crpix, target.wcs.cdelt = [180.0, 10.0], [20, 20], [-1.0, 1.0]
    result = resample(image_of(smooth, source), target, (40, 40), flux="surface_brightness")
    yy, xx = np.mgrid[:40, :40]
    ra, dec = target.all_pix2world(xx, yy, 0)
    expected = 10 + np.cos(np.radians(ra)) * np.cos(np.radians(dec))
    good = result.mask == 0
    assert good.mean() > 0.8
    np.testing.assert_allclose(result.data[good], expected[good], atol=2e-3)


def test_threads_make_no_difference():
    mask = np.zeros((200, 220), np.uint16)
    mask[np.random.default_rng(1).random(mask.shape) < 0.01] = MaskBit.BAD
    image = image_of(noise(), tan(), mask, np.abs(noise(seed=2)))
    target = tan(rotation=8.0, scale=1.7)
    one, two = (resample(image, target, (150, 160), threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one.data, two.data)
    np.testing.assert_array_equal(one.mask, two.mask)
    np.testing.assert_array_equal(one.variance, two.variance)
