"""HEALPix, tangent planes and the way from one to the other, at all the awkward places."""

from __future__ import annotations

from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import Galactic, SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from astropy_healpix import HEALPix, lonlat_to_healpix, neighbours
from numba import njit
from reproject.hips import hips_as_dask_array

from core.celestial import to_icrs
from core.deadline import Deadline
from core.errors import NoTemplate, UnusableInput
from core.tangent import TangentGrid, unit_vectors
from core.templates.hips.averages import average_tiles, block_means, finer_keys
from core.templates.hips.healpix import (
    face_position,
    nested_number,
    pixel_size,
    positions_along,
    tile_key,
)
from core.templates.hips.healpix_padding import PADDING, padding_pixels
from core.templates.hips.moc import read_moc
from core.templates.hips.projection import project_tiles, tiles_under
from core.templates.hips.properties import HipsProperties
from core.templates.hips.stack import stack_tiles
from core.templates.hips.tree import LocalTree
from tests.shared_data import shared_data

EQUATORIAL = np.eye(3)
ORDER, WIDTH = 5, 64

# The poles, RA 0, the kink where the polar caps begin, seams and corners of faces.
PLACES = [
    (10.0, 5.0, 0.0),
    (0.0, 0.0, 20.0),
    (0.01, 30.0, 200.0),
    (45.0, 89.9, 0.0),
    (0.0, 90.0, 0.0),
    (270.0, -90.0, 77.0),
    (180.0, -70.0, 10.0),
    (90.0, 41.81, 0.0),
    (20.0, 41.81, 0.0),
    (45.0, 0.0, 0.0),
]


@njit
def face_positions(v):
    out = np.empty((len(v), 3))
    for i in range(len(v)):
        out[i, 0], out[i, 1], out[i, 2] = face_position(v[i, 0], v[i, 1], v[i, 2])
    return out


def some_directions() -> np.ndarray:
    rng = np.random.default_rng(0)
    v = rng.normal(size=(20_000, 3))
    v[:500, :2] *= 1e-7  # beside the poles
    v[500:600, 1] = 0.0  # on RA 0 and 180
    return v / np.linalg.norm(v, axis=1)[:, None]


def test_positions_agree_with_astropy_healpix() -> None:
    v = some_directions()
    ours = face_positions(v)
    lon = np.degrees(np.arctan2(v[:, 1], v[:, 0]))
    lat = np.degrees(np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1])))
    side = 2**9
    number, dx, dy = lonlat_to_healpix(
        lon * u.deg, lat * u.deg, side, return_offsets=True, order="nested"
    )
    key = tile_key(number, 9)
    np.testing.assert_array_equal(nested_number(key, 9), number)
    # Places on an edge belong to either side.
    same = key // side**2 == ours[:, 0]
    assert same.mean() > 0.999
    np.testing.assert_allclose(((key % side + dx) / side)[same], ours[same, 1], atol=1e-12)
    np.testing.assert_allclose(((key // side % side + dy) / side)[same], ours[same, 2], atol=1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_positions_along_a_line_are_those_of_its_points(place: tuple[float, float, float]) -> None:
    side = 2**9 * 512
    for scale in (pixel_size(9, 512), 50 * pixel_size(9, 512)):
        grid = TangentGrid(*place[:2], scale, place[2], (9, 1000), (481.0, 4.0))
        point, step, step_y = grid.axes
        for row in range(9):
            start = point - 481 * step + (row - 4) * step_y
            line = start + np.arange(1000)[:, None] * step
            exact = face_positions(line / np.linalg.norm(line, axis=1)[:, None])
            faces, x, y = np.empty(1000, np.int64), np.empty(1000), np.empty(1000)
            positions_along(start, step, side, faces, x, y)
            same = faces == exact[:, 0]
            assert same.mean() > 0.99  # on an edge, rounding decides
            np.testing.assert_allclose(x[same], side * exact[same, 1], atol=3e-3)
            np.testing.assert_allclose(y[same], side * exact[same, 2], atol=3e-3)


@pytest.mark.parametrize("number", [0, 5, 17, 63, 64 * 4 + 21, 12 * 64 - 1, 7 * 64])
def test_padding_is_what_lies_next_to_a_tile(number: int) -> None:
    width, order = 16, 3
    key = int(tile_key(number, order))
    around = padding_pixels(key, order, width)
    depth, full = order + 4, 2**order * width
    side = 2**order

    def nested(keys: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        face, rest = keys // side**2, keys % side**2
        flat = (face * full + rest // side * width + y) * full + rest % side * width + x
        return nested_number(flat, depth)

    size = width + 2 * PADDING
    ids = np.full((size, size), -1)
    ids[around.rows, around.columns] = nested(around.keys, around.y, around.x)
    y, x = np.mgrid[:width, :width]
    ids[PADDING:-PADDING, PADDING:-PADDING] = nested(np.full(y.shape, key), y, x)
    # What lies side by side here lies side by side on the sky.
    for left, right in ((ids[:, :-1], ids[:, 1:]), (ids[:-1], ids[1:])):
        both = (left >= 0) & (right >= 0)
        near = neighbours(left[both], 2**depth, order="nested")
        touching = (near == right[both]).any(axis=0)
        assert touching.mean() > 0.97  # all but the corners where only three faces meet
    assert (ids >= 0).mean() > 0.9


def smooth(v: np.ndarray) -> np.ndarray:
    return 100 + 30 * np.sin(200 * v[..., 0]) + 20 * np.cos(150 * v[..., 1] + 250 * v[..., 2])


def tile_of(key: int) -> np.ndarray:
    row, column = np.mgrid[:WIDTH, :WIDTH]
    lon, lat = HEALPix(2**ORDER, order="nested").healpix_to_lonlat(
        np.full(row.shape, int(nested_number(key, ORDER))),
        dx=1 - (row + 0.5) / WIDTH,
        dy=(column + 0.5) / WIDTH,
    )
    return smooth(unit_vectors(lon.deg, lat.deg)).astype(np.float32)


@pytest.mark.parametrize("place", PLACES)
def test_a_smooth_sky_is_smooth_across_all_tiles(place: tuple[float, float, float]) -> None:
    ra, dec, angle = place
    grid = TangentGrid(ra, dec, pixel_size(ORDER, WIDTH), angle, (200, 240), (120.0, 100.0))
    keys = tiles_under(grid, ORDER, EQUATORIAL)
    stack = stack_tiles({int(key): tile_of(int(key)) for key in keys}, ORDER, WIDTH)
    data, mask = project_tiles(stack, grid, EQUATORIAL, pixel_area=None)
    y, x = np.mgrid[:200, :240]
    truth = smooth(unit_vectors(*to_icrs(grid.wcs, x.ravel(), y.ravel()))).reshape(200, 240)
    error = np.abs(data - truth)
    assert not mask.any()
    # Of an amplitude of 50; the largest errors lie on the seams, where HEALPix itself has a kink.
    assert error.max() < 1.0
    assert np.mean(error > 0.1) < 0.05
    assert np.median(error) < 5e-4
    # Two threads give the same.
    again, _ = project_tiles(stack, grid, EQUATORIAL, pixel_area=None, threads=2)
    np.testing.assert_array_equal(data, again)


def test_fluxes_are_per_area_of_the_pixels() -> None:
    grid = TangentGrid(10.0, 5.0, pixel_size(ORDER, WIDTH), 0.0, (400, 400), (0.0, 0.0))
    keys = tiles_under(grid, ORDER, EQUATORIAL)
    one = np.ones((WIDTH, WIDTH), np.float32)
    stack = stack_tiles(dict.fromkeys(keys.tolist(), one), ORDER, WIDTH)
    data, _ = project_tiles(stack, grid, EQUATORIAL, pixel_area=grid.scale**2 / 4)
    np.testing.assert_allclose(data, 4 * grid.pixel_areas() / grid.scale**2, rtol=1e-5)
    # The area of a pixel from its corners on the sphere; 16 degrees away it is a tenth smaller.
    x, y = np.array([398.5, 399.5, 398.5]), np.array([398.5, 398.5, 399.5])
    a, b, c = unit_vectors(*to_icrs(grid.wcs, x, y))
    area = np.degrees(np.degrees(np.linalg.norm(np.cross(b - a, c - a))))
    assert data[-1, -1] == pytest.approx(4 * area / grid.scale**2, rel=2e-3)
    assert data[-1, -1] < 3.7


def test_missing_tiles_and_pixels_are_masked_and_no_more() -> None:
    grid = TangentGrid(10.0, 5.0, pixel_size(ORDER, WIDTH), 0.0, (150, 150), (75.0, 75.0))
    keys = tiles_under(grid, ORDER, EQUATORIAL).tolist()
    tiles = {key: tile_of(key) for key in keys}
    whole, _ = project_tiles(stack_tiles(tiles, ORDER, WIDTH), grid, EQUATORIAL, pixel_area=None)
    middle = int(
        tile_key(HEALPix(2**ORDER, order="nested").lonlat_to_healpix(10 * u.deg, 5 * u.deg), ORDER)
    )
    tiles[middle] = tiles[middle].copy()
    tiles[middle][20, 30] = np.nan
    holed, mask = project_tiles(stack_tiles(tiles, ORDER, WIDTH), grid, EQUATORIAL, pixel_area=None)
    assert 1 <= np.count_nonzero(mask) <= 9
    assert np.isnan(holed[mask != 0]).all()
    np.testing.assert_allclose(holed[mask == 0], whole[mask == 0], atol=3.0)
    del tiles[middle]
    holed, mask = project_tiles(stack_tiles(tiles, ORDER, WIDTH), grid, EQUATORIAL, pixel_area=None)
    assert WIDTH**2 < np.count_nonzero(mask) < 1.2 * WIDTH**2
    assert np.isnan(holed[mask != 0]).all()


def test_saturated_pixels_are_flagged() -> None:
    grid = TangentGrid(10.0, 5.0, pixel_size(ORDER, WIDTH), 0.0, (150, 150), (75.0, 75.0))
    keys = tiles_under(grid, ORDER, EQUATORIAL).tolist()
    flat = np.full((WIDTH, WIDTH), 100.0, np.float32)
    flat[30, 30] = 60_000.0
    stack = stack_tiles(dict.fromkeys(keys, flat), ORDER, WIDTH)
    data, mask = project_tiles(stack, grid, EQUATORIAL, pixel_area=None, saturation=50_000)
    assert (mask[data > 20_000] == 2).all()
    assert 0 < np.count_nonzero(mask == 2) < 30 * len(keys)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_tangent_grid_contains_the_exposure_and_lies_along_it(
    place: tuple[float, float, float], mirrored: bool
) -> None:
    ra, dec, angle = place
    wcs = TangentGrid(ra, dec, 2e-4, angle, (400, 300), (150.0, 200.0)).wcs
    if mirrored:
        wcs.wcs.cd = wcs.wcs.cd @ np.diag([-1, 1])
    grid = TangentGrid.around(wcs, (400, 300), 1e-4, margin=10)
    corners = to_icrs(wcs, [-0.5, 299.5, -0.5, 299.5], [-0.5, -0.5, 399.5, 399.5])
    x, y = grid.pixels(unit_vectors(*corners))
    assert min(x.min(), y.min()) >= 10
    assert max(x.max() - grid.shape[1], y.max() - grid.shape[0]) <= -10
    assert grid.shape == pytest.approx((823, 623), abs=4)
    # The WCS says the same as the vectors.
    wx, wy = grid.wcs.all_world2pix(corners[0], corners[1], 0)
    np.testing.assert_allclose([wx, wy], [x, y], atol=1e-5)


def test_exposures_of_one_field_share_a_grid() -> None:
    grids = set()
    rng = np.random.default_rng(3)
    for _ in range(20):
        dra, ddec, turn = rng.normal(0, 2 / 3600, 3)
        wcs = TangentGrid(40 + dra, -30 + ddec, 3e-4, 10 + turn, (1024, 1024), (511.0, 511.0)).wcs
        grids.add(TangentGrid.around(wcs, (1024, 1024), 3e-4, shared=True))
    assert len(grids) <= 3
    for grid in grids:
        corners = unit_vectors(*to_icrs(wcs, [0, 1023, 0, 1023], [0, 0, 1023, 1023]))
        x, y = grid.pixels(corners)
        assert min(x.min(), y.min()) > 55
        assert max(x.max() - grid.shape[1], y.max() - grid.shape[0]) < -55


def test_a_frame_too_wide_for_a_plane_is_refused() -> None:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---CAR", "DEC--CAR"]
    wcs.wcs.crval = [10.0, 0.0]
    wcs.wcs.crpix = [180.5, 90.5]
    wcs.wcs.cdelt = [-1.0, 1.0]
    with pytest.raises(UnusableInput, match="more than 60 degrees"):
        TangentGrid.around(wcs, (180, 360), 1.0)


def test_finer_tiles_average_to_coarser_ones() -> None:
    rng = np.random.default_rng(2)
    key, order, width = int(tile_key(1234, 5)), 5, 16
    full = rng.normal(0, 1, (4 * width, 4 * width)).astype(np.float32)  # y, x along the face
    tiles = {}
    fine = finer_keys(np.array([key]), order, 2)
    assert set(nested_number(fine, 7) // 16) == {1234}
    side = 2**7
    for one in fine.tolist():
        y, x = one % side**2 // side % 4 * width, one % side % 4 * width
        tiles[one] = full[y : y + width, x : x + width].T[::-1]
    found = average_tiles(tiles, order, 2)
    assert list(found) == [key]
    expected = full.reshape(width, 4, width, 4).mean(axis=(1, 3)).T[::-1]
    np.testing.assert_allclose(found[key], expected, atol=1e-6)
    del tiles[int(fine[0])]
    assert np.isnan(average_tiles(tiles, order, 2)[key]).mean() == pytest.approx(1 / 16)


def test_block_means_take_three_quarters() -> None:
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    values[0, 0] = np.nan
    values[2:, 2:].flat[:2] = np.nan
    found = block_means(values, 2)
    assert found[0, 0] == pytest.approx((1 + 4 + 5) / 3)
    assert np.isnan(found[1, 1])
    assert found[0, 1] == pytest.approx((2 + 3 + 6 + 7) / 4)


@pytest.mark.data
@pytest.mark.parametrize(
    ("survey", "title", "frame"),
    [
        ("DSS2Red", "ivo://CDS/P/DSS2/red", "equatorial"),
        ("IRAC4", "IRAC4  survey in Healpix", "galactic"),
        ("Planck-HFI143", "PLANCK nominal frequency HFI map 143Ghz", "galactic"),
    ],
)
def test_real_properties(survey: str, title: str, frame: str) -> None:
    text = (shared_data("hips_tiles") / survey / "properties").read_text()
    properties = HipsProperties.parse(text, survey)
    assert (properties.title, properties.frame, properties.order) == (title, frame, 3)
    assert properties.tile_width == (256 if survey.startswith("Planck") else 512)


@pytest.mark.data
def test_real_tiles_lie_where_reproject_puts_them() -> None:
    folder = shared_data("hips_tiles") / "Planck-HFI143"
    array, wcs = hips_as_dask_array(folder)
    properties = HipsProperties.parse((folder / "properties").read_text(), str(folder))
    healpix = HEALPix(8, order="nested", frame=Galactic())
    numbers = [271, 280, 281, 282, 283]
    tree = LocalTree(folder)
    tiles = {int(tile_key(n, 3)): tree.tile(properties, 3, n, Deadline.never()) for n in numbers}
    stack = stack_tiles(tiles, 3, 256)
    for number in (280, 282):
        centre = healpix.healpix_to_skycoord(number).icrs
        grid = TangentGrid(
            centre.ra.deg, centre.dec.deg, properties.pixel(3), 30.0, (60, 60), (30.0, 30.0)
        )
        data, mask = project_tiles(stack, grid, properties.rotation, pixel_area=None)
        assert not mask.any()
        x, y = np.meshgrid(np.arange(0, 60, 7), np.arange(0, 60, 7))
        ra, dec = to_icrs(grid.wcs, x.ravel(), y.ravel())
        px, py = wcs.world_to_pixel(SkyCoord(ra, dec, unit="deg"))
        for value, i, j in zip(data[y, x].ravel(), px, py, strict=True):
            around = array[int(j) : int(j) + 2, int(i) : int(i) + 2].compute()
            slack = np.ptp(around) + 1e-6
            assert around.min() - slack <= value <= around.max() + slack


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("hips_tile_format = png jpeg", "has only pictures"),
        ("dataproduct_type = cube", "holds cubes"),
        ("hips_frame = mars", "none of the sky"),
        ("hips_order = nine", "hips_order is nine"),
        ("hips_order = --5", "hips_order is --5"),
        ("hips_order = 99", "order 99 is not possible"),
        ("hips_tile_width = 500", "tiles of 500 pixels"),
    ],
)
def test_what_cannot_be_a_template_is_said_in_one_line(change: str, message: str) -> None:
    text = "hips_order = 9\nhips_frame = equatorial\nhips_tile_format = png fits\n" + change
    with pytest.raises(NoTemplate, match=message) as caught:
        HipsProperties.parse(text, "the test's HiPS")
    assert "\n" not in str(caught.value)


def test_properties_of_old_hips_are_understood() -> None:
    text = "label = x\ncoordsys = G\nmaxOrder = 7\nformat = jpeg fits\n#hips_order = 3\nrubbish\n"
    properties = HipsProperties.parse(text, "old")
    assert (properties.frame, properties.order, properties.tile_width) == ("galactic", 7, 512)


def test_the_order_is_just_finer_than_the_exposure() -> None:
    properties = HipsProperties("x", order=11, order_min=3)
    assert 3600 * properties.pixel(9) == pytest.approx(0.805, abs=1e-3)
    for scale, order in ((1.0, 9), (0.806, 9), (0.7, 10), (0.3, 11), (0.01, 11), (1e5, 3)):
        assert properties.order_for(scale / 3600) == order


def test_frames_of_hips() -> None:
    pole = HipsProperties("x", 9, frame="galactic").rotation @ unit_vectors(192.85948, 27.12825)
    np.testing.assert_allclose(pole, [0, 0, 1], atol=1e-6)
    pole = HipsProperties("x", 9, frame="ecliptic").rotation @ unit_vectors(270.0, 66.5607083)
    np.testing.assert_allclose(pole, [0, 0, 1], atol=1e-6)


@pytest.mark.parametrize("ranges", [False, True])
def test_a_coverage_map_covers_its_cells_and_no_more(tmp_path: Path, ranges: bool) -> None:
    cells = {3: [100, 102, 767], 5: [101 * 16 + 5, 0]}
    if ranges:
        pairs = sorted([n << 58 - 2 * o, (n + 1) << 58 - 2 * o] for o in cells for n in cells[o])
        values, ordering = np.ravel(pairs), "RANGE"
    else:
        values, ordering = np.array([4 * 4**o + n for o in cells for n in cells[o]]), "NUNIQ"
    table = fits.BinTableHDU.from_columns([fits.Column("X", "K", array=values)])
    table.header["ORDERING"] = ordering
    table.writeto(tmp_path / "Moc.fits")
    moc = read_moc(tmp_path / "Moc.fits")
    assert moc is not None
    fine = np.arange(12 * 4**6)
    lon, lat = HEALPix(2**6, order="nested").healpix_to_lonlat(fine)
    expected = np.isin(fine // 64, cells[3]) | np.isin(fine // 4, cells[5])
    np.testing.assert_array_equal(moc.covers(lon.deg, lat.deg), expected)
    assert not moc.covers(np.array([np.nan]), np.array([0.0]))[0]
