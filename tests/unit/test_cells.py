"""Cells of a survey: reading their planes, cutting and binning them, and where to look for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from core.celestial import from_icrs, to_icrs
from core.errors import UnusableInput
from core.image import ExposureFacts, Image, MaskBit
from core.templates.cells.binning import binned, read_written_cell, write_cell
from core.templates.cells.cell import CellFormat, CellImage, box_around, read_cell, shifted
from core.templates.cells.sky_places import grid_places, lattice_places, thinned
from core.templates.cells.survey_bits import PANSTARRS, SurveyBits
from core.templates.index import Frame
from tests.archive.panstarrs import Projection, asinh_file, mask_file, stack_header

PROJECTION = Projection(7, 40.0, 10.0, cell=100, overlap=20)
LAYOUT = CellFormat("variance", PANSTARRS, frame="FK5")
SHAPE = (120, 120)


def planes(folder, subcell=0, data=None, variance=None, bits=None, mask_shape=None):
    header = stack_header(PROJECTION.wcs[PROJECTION.box(subcell)], 100.0, "r", 7, subcell)
    data = np.random.default_rng(1).normal(0, 5, SHAPE) if data is None else data
    variance = np.full(SHAPE, 25.0) if variance is None else variance
    bits = np.zeros(mask_shape or SHAPE, np.uint16) if bits is None else bits
    files = []
    for name, body in (
        ("image", asinh_file(data, header)),
        ("noise", asinh_file(variance, header)),
        ("mask", mask_file(bits, header)),
    ):
        files.append(folder / f"{name}.fits")
        files[-1].write_bytes(body)
    return tuple(files)


def made_cell(subcell=0, data=None, missing=(), bits=()):
    """A cell in memory, of ones."""
    pixels = np.ones(SHAPE, np.float32) if data is None else data
    mask = np.zeros(SHAPE, np.uint16)
    values = np.zeros(SHAPE, np.int32)
    for row, column in missing:
        mask[row, column] = MaskBit.NO_DATA
    for row, column, value in bits:
        values[row, column] = value
    image = Image(
        pixels, mask, np.full(SHAPE, 2.0, np.float32), PROJECTION.wcs[PROJECTION.box(subcell)],
        facts=ExposureFacts(zero_point=30.0, exposure_time=100.0, gain=1.5, band="r"), name="c",
    )  # fmt: skip
    return CellImage(image, values, n_frames=12)


def test_planes_become_an_image(tmp_path):
    """Image and variance are linear again, each by its own cards; facts come from headers."""
    rng = np.random.default_rng(2)
    data = rng.normal(0, 5, SHAPE)
    variance = rng.uniform(20, 30, SHAPE)
    data[10, 20] = 1e5
    cell = read_cell(planes(tmp_path, data=data, variance=variance), "cell", LAYOUT)
    image = cell.image
    assert np.abs(image.data - data).max() < 30  # rounding at 1e5
    assert np.median(np.abs(image.data - data)) < 0.05
    np.testing.assert_allclose(image.variance, variance, rtol=1e-3)
    assert image.facts.zero_point == pytest.approx(25 + 2.5 * np.log10(100.0))
    assert image.facts.exposure_time == 100.0
    assert cell.n_frames == 12
    assert not image.mask.any()


def test_what_is_missing_is_no_data(tmp_path):
    data, variance = np.ones(SHAPE), np.full(SHAPE, 4.0)
    data[:50] += np.random.default_rng(3).normal(0, 1, (50, 120))
    data[60, 60] = np.nan
    variance[70, 70] = np.nan
    variance[80, 80] = -9.0
    bits = np.zeros(SHAPE, np.uint16)
    bits[90, 90] = 0x8
    cell = read_cell(planes(tmp_path, data=data, variance=variance, bits=bits), "cell", LAYOUT)
    flagged = np.argwhere(cell.image.mask)
    assert flagged.tolist() == [[60, 60], [70, 70], [80, 80], [90, 90]]
    assert (cell.image.mask[cell.image.mask != 0] == MaskBit.NO_DATA).all()
    assert np.isfinite(cell.image.data).all()
    assert (cell.image.variance > 0).all()


def test_planes_must_fit_together(tmp_path):
    files = planes(tmp_path, mask_shape=(120, 121))
    with pytest.raises(UnusableInput, match="cell: image, noise and mask have the shapes"):
        read_cell(files, "cell", LAYOUT)


def test_a_cell_without_zero_point_is_not_guessed_at(tmp_path):
    files = planes(tmp_path)
    for keyword in ("EXPTIME", "FPA.ZP"):
        with fits.open(files[0]) as hdus:
            del hdus[1].header[keyword]
            hdus.writeto(tmp_path / "other.fits", overwrite=True)
        with pytest.raises(UnusableInput, match="states no zero point, or no exposure time"):
            read_cell((tmp_path / "other.fits", *files[1:]), "cell", LAYOUT)


def test_a_file_without_image_is_named(tmp_path):
    files = planes(tmp_path)
    fits.PrimaryHDU().writeto(tmp_path / "empty.fits")
    with pytest.raises(UnusableInput, match=r"empty\.fits: holds no two-dimensional image"):
        read_cell((files[0], files[1], tmp_path / "empty.fits"), "cell", LAYOUT)


def test_only_what_is_around_the_places_is_read(tmp_path):
    files = planes(tmp_path)
    whole = read_cell(files, "cell", LAYOUT)
    ra, dec = to_icrs(whole.image.wcs, [100.4], [110.4])
    cut = read_cell(files, "cell", LAYOUT, (ra, dec))
    assert cut.image.shape == (120 - 50, 120 - 40)  # 60 pixels around it, as far as there are any
    assert np.array_equal(cut.image.data, whole.image.data[50:, 40:])
    assert np.ravel(from_icrs(cut.image.wcs, ra, dec)) == pytest.approx([60.4, 60.4], abs=1e-5)
    assert read_cell(files, "cell", LAYOUT, (ra + 1, dec)) is None


def test_binned_fluxes_and_variances_add_up():
    cell = made_cell()
    small = binned(cell, 3, LAYOUT)
    assert (small.image.data == 9).all()
    assert (small.image.variance == 18).all()
    assert small.image.facts == cell.image.facts
    assert small.n_frames == 12


def test_bins_make_up_for_a_few_missing_pixels_only():
    """One of nine pixels: the others stand for it. Two of nine: there is nothing."""
    crpix = made_cell().image.wcs.wcs.crpix
    row, column = (int(np.floor(crpix[axis] - 1)) % 3 for axis in (1, 0))
    few = [(row + 30, column + 60)]
    many = [(row + 60, column + 30), (row + 61, column + 30)]
    bits = [(row + 32, column + 62, 0x20), (row + 91, column + 90, 0x1000)]
    small = binned(made_cell(missing=few + many, bits=bits), 3, LAYOUT)
    assert small.image.data[10, 20] == 9
    assert small.image.variance[10, 20] == pytest.approx(81 * 2 / 8)
    assert small.image.mask[10, 20] == MaskBit.SATURATED
    assert small.image.mask[20, 10] == MaskBit.NO_DATA
    assert small.bits[30, 30] == 0x1000
    assert np.count_nonzero(small.image.mask) == 2  # STARCORE is no defect
    assert np.isfinite(small.image.data).all()


def cell_with(flag, places):
    values = np.zeros(SHAPE, np.int32)
    pixels = np.ones(SHAPE, np.float32)
    for row, column in places:
        values[row, column], pixels[row, column] = flag, 1e6
    cell = made_cell(data=pixels)
    return replace(
        cell, image=replace(cell.image, mask=PANSTARRS.decoded(values)), bits=values | 0x1000
    )


@pytest.mark.parametrize(
    ("name", "count", "bins", "flagged"),
    [
        ("BLANK", 1, 3, 0),
        ("BLANK", 1, 2, 1),
        ("BLANK", 3, 5, 0),
        ("BLANK", 4, 5, 1),
        ("SAT", 1, 5, 1),
    ],
)
def test_flagged_pixels_cost_a_bin_by_their_share(name, count, bins, flagged):
    crpix = made_cell().image.wcs.wcs.crpix
    row, column = (int(np.floor(crpix[axis] - 1)) % bins for axis in (1, 0))
    places = [(row + 10 * bins, column + 10 * bins + k) for k in range(count)]
    small = binned(cell_with(PANSTARRS.values[name], places), bins, LAYOUT)
    assert np.count_nonzero(small.image.mask) == flagged
    value = PANSTARRS.values[name] if flagged else 0
    assert small.bits[10, 10] == value | 0x1000
    # The bad pixels' own value is never in it.
    if small.image.mask[10, 10] & MaskBit.NO_DATA == 0:
        assert small.image.data[10, 10] == pytest.approx(bins**2)
        expected = 2.0 * bins**4 / (bins**2 - count)
        assert small.image.variance[10, 10] == pytest.approx(expected, rel=1e-5)


def test_bins_of_neighbours_fall_onto_each_other():
    """Whole bins lie between the reference pixels, though cells begin 100 pixels apart."""
    one, two = (binned(made_cell(subcell), 3, LAYOUT).image.wcs for subcell in (0, 1))
    apart = (np.array(one.wcs.crpix) - np.array(two.wcs.crpix))[0]
    assert apart == pytest.approx(round(apart), abs=1e-9)


@pytest.mark.parametrize("bins", [1, 2, 5])
@pytest.mark.parametrize("start", [(0, 0), (-7, 11)])
def test_wcs_of_a_part(bins, start):
    """The middle of a bin lies where the middle of its pixels did."""
    wcs = made_cell().image.wcs
    part = shifted(wcs, (slice(start[0], None), slice(start[1], None)), bins)
    middle = (bins - 1) / 2
    expected = wcs.all_pix2world([[start[1] + 4 * bins + middle, start[0] + middle]], 0)
    assert part.all_pix2world([[4.0, 0.0]], 0) == pytest.approx(expected, abs=1e-9)


def test_bins_larger_than_the_cell_are_refused():
    with pytest.raises(UnusableInput, match="smaller than one bin of 200"):
        binned(made_cell(), 200, LAYOUT)


def test_written_cells_are_read_as_they_were(tmp_path):
    cell = made_cell(missing=[(5, 6)], bits=[(7, 8, 0x20), (9, 9, 0x1000)])
    write_cell(cell, tmp_path / "cell.fits")
    back = read_written_cell(tmp_path / "cell.fits", "c", LAYOUT)
    good = cell.image.mask == 0
    assert np.array_equal(back.image.data[good], cell.image.data[good])
    assert np.array_equal(back.bits, cell.bits)
    assert back.image.mask[5, 6] == MaskBit.NO_DATA
    assert back.image.mask[7, 8] == MaskBit.SATURATED
    kept = ("zero_point", "exposure_time", "gain", "band")
    for name in kept:
        assert getattr(back.image.facts, name) == pytest.approx(getattr(cell.image.facts, name))
    corner = [[0.0, 119.0]]
    assert back.image.wcs.all_pix2world(corner, 0) == pytest.approx(
        cell.image.wcs.all_pix2world(corner, 0), abs=1e-9
    )
    assert back.n_frames == 12


def test_box_around_nothing():
    wcs = made_cell().image.wcs
    assert box_around(wcs, SHAPE, [np.nan], [np.nan]) is None
    assert box_around(wcs, SHAPE, [41.0], [10.0]) is None


def frame(ra, dec, shape=(200, 300), scale=10.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = ra, dec
    wcs.wcs.crpix = shape[1] / 2 + 0.5, shape[0] / 2 + 0.5
    wcs.wcs.cdelt = -scale / 3600, scale / 3600
    return Frame.of(wcs, shape)


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 0.0), (359.9, 45.0), (77.0, 90.0), (10.0, -89.7)])
def test_no_place_of_a_frame_is_far_from_the_lattice(ra, dec):
    """None is further from a place that is asked for than the lattice is wide."""
    here = frame(ra, dec)
    lattice = lattice_places(here, 0.1)
    everywhere = grid_places(here, 40)
    a, b = (_vectors(*places) for places in (lattice, everywhere))
    nearest = np.degrees(np.arccos(np.clip((b @ a.T).max(axis=1), -1, 1)))
    assert nearest.max() < 0.125
    assert len(lattice[0]) < 90


def test_neighbours_ask_at_the_same_places():
    one = set(zip(*lattice_places(frame(40.0, 10.0), 0.1), strict=True))
    two = set(zip(*lattice_places(frame(40.03, 10.02), 0.1), strict=True))
    assert len(one & two) > 0.6 * len(one)


@pytest.mark.parametrize("dec", [0.0, -30.0, 60.0, 89.5])
def test_a_pointing_that_is_repeated_asks_nothing_new(dec):
    """It never comes back to the very same place, but to within a few arcseconds."""
    lists = [lattice_places(frame(40.0 + 1e-3 * k, dec + 7e-4 * k), 0.2) for k in range(4)]
    asked = set(zip(*lists[0], strict=True))
    new = [len(set(zip(*places, strict=True)) - asked) for places in lists[1:]]
    assert len(asked) >= 8
    assert sum(new) <= 3  # where it was 12, the corners of three exposures


def test_thinned_places_stand_for_all():
    here = frame(0.0, 80.0)
    ra, dec = grid_places(here, 40)
    few = thinned(ra, dec, 0.1)
    a, b = _vectors(*few), _vectors(ra, dec)
    assert np.degrees(np.arccos(np.clip((b @ a.T).max(axis=1), -1, 1))).max() <= 0.1 + 1e-6
    assert 10 < len(few[0]) < 150


def _vectors(ra, dec):
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def test_bits_have_names():
    assert PANSTARRS.names_of(0x0021) == ("DETECTOR", "SAT")
    assert PANSTARRS.value_of("SAT", "SPIKE") == 0x0220
    with pytest.raises(ValueError, match="no such bits: SATURN"):
        SurveyBits({"SAT": 1}, {"SATURN": MaskBit.SATURATED}, 1)


def test_weights_are_inverse_variances(tmp_path):
    files = planes(tmp_path, variance=np.full(SHAPE, 0.04))
    layout = replace(LAYOUT, noise="weight", zero_point=22.5)
    cell = read_cell(files, "cell", layout)
    assert np.median(cell.image.variance) == pytest.approx(25, rel=1e-3)
    assert cell.image.facts.zero_point == 22.5
