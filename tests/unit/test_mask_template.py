"""mask_template: NaNs, catalogue stars, photometric saturation, growth."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.wcs import WCS

from core.templates.linearity import measure_linearity
from core.templates.masking import mask_template
from core.templates.wrong_request import WrongRequest
from tests.unit.made_frames import add_gaussians

SHAPE = (600, 640)
ZERO_POINT = 27.0


@pytest.fixture
def wcs():
    grid = WCS(naxis=2)
    grid.wcs.ctype = "RA---TAN", "DEC--TAN"
    grid.wcs.crval = 150.0, 30.0
    grid.wcs.crpix = SHAPE[1] / 2, SHAPE[0] / 2
    grid.wcs.cd = [[-0.5 / 3600, 0], [0, 0.5 / 3600]]
    return grid


def field(wcs, saturation=None, seed=1, number=None, mag_range=(13.0, 19.0)):
    """A frame of stars, clipped at a level, and the catalogue of them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[20 : SHAPE[0] - 20 : 28, 20 : SHAPE[1] - 20 : 28]
    x = (x.ravel() + rng.uniform(-0.5, 0.5, x.size))[:number]
    y = (y.ravel() + rng.uniform(-0.5, 0.5, y.size))[:number]
    mag = rng.uniform(*mag_range, x.size)
    pixels = rng.normal(100, 3, SHAPE)
    add_gaussians(pixels, x, y, 10 ** (0.4 * (ZERO_POINT - mag)), 3.5)
    if saturation is not None:
        pixels = np.minimum(pixels, saturation)
    ra, dec = wcs.all_pix2world(x, y, 0)
    noisy = mag + rng.normal(0, 0.02, mag.size)
    table = Table({"RAJ2000": ra, "DEJ2000": dec, "rmag": noisy, "e_rmag": 0.02 * np.ones(x.size)})
    return pixels, table, x, y, mag


def masked_stars(mask, x, y):
    return mask[np.rint(y).astype(int), np.rint(x).astype(int)]


def test_nans_are_masked_and_grown():
    image = np.zeros((50, 60))
    image[20, 30] = np.nan
    image[0, 0] = np.inf
    mask = mask_template(image)
    assert mask.dtype == bool
    assert mask.shape == image.shape
    expected = np.zeros(image.shape, bool)
    expected[18:23, 28:33] = True  # 5 pixels, the documented default
    expected[0:3, 0:3] = True
    assert np.array_equal(mask, expected)
    assert mask_template(image, dilate=0).sum() == 2
    assert mask_template(image, dilate=1).sum() == 2
    assert mask_template(image, dilate=3)[19:22, 29:32].all()
    assert not mask_template(image, mask_nans=False).any()


@pytest.mark.parametrize("dilate", [-3, 2.5, "5", True])
def test_a_growth_that_is_no_size_is_refused(dilate):
    with pytest.raises(WrongRequest, match="is not a size in pixels"):
        mask_template(np.ones((5, 5)), dilate=dilate)


def test_stars_whose_error_is_unknown_are_not_masked_for_it(wcs):
    image, cat, _, _, _ = field(wcs)
    cat["e_rmag"][:] = np.nan
    assert not mask_template(image, cat, wcs=wcs).any()


def test_nothing_wrong_is_nothing_masked():
    assert not mask_template(np.ones((20, 20), np.float32)).any()
    assert not mask_template(np.ones((20, 20), np.int16)).any()


def test_bright_stars_lose_their_central_pixel(wcs):
    image, cat, x, y, _ = field(wcs)
    mask = mask_template(image, cat, cat_saturation_mag=15, wcs=wcs, dilate=0)
    bright = np.asarray(cat["rmag"]) < 15
    assert 0 < bright.sum() < len(cat)
    assert np.array_equal(masked_stars(mask, x, y), bright)
    assert mask.sum() == bright.sum()


def test_stars_beside_the_image_do_no_harm(wcs):
    image = field(wcs)[0]
    ra, dec = wcs.all_pix2world([-3.0, 700.0, 30.0], [30.0, 30.0, -0.6], 0)
    far = Table(
        {"RAJ2000": [*ra, 330.0], "DEJ2000": [*dec, -30.0], "rmag": [9.0] * 4, "e_rmag": [0.1] * 4}
    )
    assert not mask_template(image, far, cat_saturation_mag=15, wcs=wcs).any()


def test_without_wcs_the_catalogue_is_not_used(wcs):
    image, cat, _, _, _ = field(wcs)
    assert not mask_template(image, cat, cat_saturation_mag=15).any()


@pytest.mark.parametrize("how", ["masked", "nan"])
def test_stars_without_magnitude(wcs, how):
    image, cat, x, y, _ = field(wcs)
    gone = np.zeros(len(cat), bool)
    gone[[3, 50, 200]] = True
    values = np.asarray(cat["rmag"]).copy()
    if how == "masked":
        cat["rmag"] = MaskedColumn(values, mask=gone)
    else:
        values[gone] = np.nan
        cat["rmag"] = Column(values)
    mask = mask_template(image, cat, wcs=wcs, dilate=0)
    assert np.array_equal(masked_stars(mask, x, y), gone)
    assert not mask_template(image, cat, wcs=wcs, dilate=0, mask_masked=False).any()


def test_other_column_names(wcs):
    image, cat, x, y, _ = field(wcs)
    cat.rename_columns(["rmag", "RAJ2000", "DEJ2000"], ["Gmag", "RA_ICRS", "DE_ICRS"])
    mask = mask_template(
        image, cat, cat_saturation_mag=15, cat_col_mag="Gmag", cat_col_ra="RA_ICRS",
        cat_col_dec="DE_ICRS", wcs=wcs, dilate=0,
    )  # fmt: skip
    assert np.array_equal(masked_stars(mask, x, y), np.asarray(cat["Gmag"]) < 15)


def test_tables_with_units(wcs):
    """Of VizieR, magnitudes and degrees have units; in a QTable they are quantities."""
    image, cat, x, y, _ = field(wcs)
    for name, unit in (("RAJ2000", "deg"), ("DEJ2000", "deg"), ("rmag", "mag"), ("e_rmag", "mag")):
        cat[name].unit = unit
    bright = np.asarray(cat["rmag"]) < 15
    for table in (cat, QTable(cat)):
        mask = mask_template(image, table, cat_saturation_mag=15, wcs=wcs, dilate=0)
        assert np.array_equal(masked_stars(mask, x, y), bright)
        assert not mask_template(image, table, wcs=wcs, mask_photometric=True).any()


def test_a_missing_column_is_named(wcs):
    image, cat, _, _, _ = field(wcs)
    with pytest.raises(ValueError, match="no column 'gmag'; it has RAJ2000"):
        mask_template(image, cat, cat_col_mag="gmag", wcs=wcs)


def test_saturated_stars_are_found_by_their_fluxes(wcs):
    """Pixels are clipped: all stars that lost a tenth are found, no linear one is."""
    level = 10 ** (0.4 * (ZERO_POINT - 15.0)) / (2 * np.pi * (3.5 / 2.3548) ** 2)
    image, cat, x, y, mag = field(wcs, saturation=level)
    mask = mask_template(image, cat, wcs=wcs, mask_photometric=True, dilate=0)
    found = masked_stars(mask, x, y)
    assert found[mag < 14.6].all()
    assert not found[mag > 15.05].any()


def test_saturation_is_seen_where_most_stars_are_saturated(wcs):
    level = 10 ** (0.4 * (ZERO_POINT - 17.0)) / (2 * np.pi * (3.5 / 2.3548) ** 2)
    image, cat, x, y, mag = field(wcs, saturation=level)
    assert (mag < 16.6).mean() > 0.55
    found = masked_stars(mask_template(image, cat, wcs=wcs, mask_photometric=True, dilate=0), x, y)
    assert found[mag < 16.6].all()
    assert not found[mag > 17.1].any()


def test_a_linear_image_has_none(wcs):
    image, cat, _, _, _ = field(wcs)
    assert not mask_template(image, cat, wcs=wcs, mask_photometric=True).any()


def test_stars_that_are_holes_are_saturated_too(wcs):
    """Cores that are NaN cannot be measured; they are brighter than the turnover."""
    level = 10 ** (0.4 * (ZERO_POINT - 15.0)) / (2 * np.pi * (3.5 / 2.3548) ** 2)
    image, cat, x, y, mag = field(wcs, saturation=level)
    burnt = mag < 13.5
    image[np.rint(y[burnt]).astype(int), np.rint(x[burnt]).astype(int)] = np.nan
    mask = mask_template(image, cat, wcs=wcs, mask_photometric=True, mask_nans=False, dilate=0)
    assert masked_stars(mask, x, y)[burnt].all()


def test_few_stars_tell_nothing(wcs):
    said = []
    image, cat, _, _, _ = field(wcs, number=6)
    mask = mask_template(image, cat, wcs=wcs, mask_photometric=True, verbose=said.append)
    assert not mask.any()
    assert any("too few to see saturation" in line for line in said)


def test_zero_point_and_turnover():
    rng = np.random.default_rng(3)
    mag = np.linspace(12, 20, 300)
    error = np.full(mag.size, 0.02)
    instrumental = mag - 27.3 + rng.normal(0, 0.02, mag.size)
    bright = mag < 14
    instrumental[bright] += 0.6 * (14 - mag[bright])
    instrumental[150] += 2.0  # a variable star, that has nothing to do with it
    found = measure_linearity(mag, instrumental, error)
    assert found is not None
    assert found.zero_point == pytest.approx(27.3, abs=0.005)
    assert found.scatter == pytest.approx(0.02, rel=0.3)
    assert found.turnover == pytest.approx(13.9, abs=0.1)
    saturated = found.saturated(mag, instrumental, error)
    assert saturated[mag < 13.8].all()
    assert not saturated[mag > 14.05].any()


def test_one_bright_variable_is_no_turnover():
    rng = np.random.default_rng(4)
    mag = np.linspace(12, 20, 100)
    instrumental = mag - 25 + rng.normal(0, 0.02, mag.size)
    instrumental[0] += 1.5
    found = measure_linearity(mag, instrumental, np.full(mag.size, 0.02))
    assert found is not None
    assert found.turnover is None


def test_images_must_have_two_dimensions():
    with pytest.raises(ValueError, match="3 dimensions"):
        mask_template(np.zeros((2, 3, 4)))
