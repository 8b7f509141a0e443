"""Pixels to the sky and back, whatever frame the WCS is written in."""

import numpy as np
import pytest
from astropy.coordinates import FK4, FK5, ICRS, Galactic, SkyCoord
from astropy.wcs import WCS

from core.celestial import celestial_frame, change_frame, from_icrs, to_icrs

CENTRE = SkyCoord(201.3, -12.7, unit="deg")
X = np.array([0.0, 100.5, 511.0, 900.25, 1023.0])
Y = np.array([3.0, 700.0, 511.0, 12.75, 1023.0])


def tan_wcs(frame, axes=("RA---TAN", "DEC--TAN"), radesys="", equinox=None, swapped=False):
    """A tangent plane of 1 arcsec pixels, its centre at `CENTRE` in the frame's own words."""
    centre = CENTRE.transform_to(frame).spherical
    wcs = WCS(naxis=2)
    values = [centre.lon.deg, centre.lat.deg]
    wcs.wcs.ctype = list(axes[::-1] if swapped else axes)
    wcs.wcs.crval = values[::-1] if swapped else values
    wcs.wcs.crpix = [512.5, 512.5]
    matrix = np.array([[-1.0, 0.1], [0.1, 1.0]]) / 3600
    wcs.wcs.cd = matrix[::-1] if swapped else matrix
    if radesys:
        wcs.wcs.radesys = radesys
    if equinox:
        wcs.wcs.equinox = equinox
    wcs.wcs.set()
    return wcs


FRAMES = {
    "icrs": (ICRS(), {"radesys": "ICRS"}),
    "fk5": (FK5(equinox="J2000"), {"radesys": "FK5", "equinox": 2000.0}),
    "fk5 of date": (FK5(equinox="J2015.5"), {"radesys": "FK5", "equinox": 2015.5}),
    "fk4": (FK4(equinox="B1950"), {"radesys": "FK4", "equinox": 1950.0}),
    "galactic": (Galactic(), {"axes": ("GLON-TAN", "GLAT-TAN")}),
    "declination first": (ICRS(), {"radesys": "ICRS", "swapped": True}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_positions_are_icrs(name):
    frame, words = FRAMES[name]
    wcs = tan_wcs(frame, **words)
    ra, dec = to_icrs(wcs, X, Y)
    lon, lat = wcs.all_pix2world(X, Y, 0)
    if words.get("swapped"):
        lon, lat = lat, lon
    independent = SkyCoord(lon, lat, unit="deg", frame=frame).icrs
    got = SkyCoord(ra, dec, unit="deg")
    assert got.separation(independent).arcsec.max() < 1e-3
    assert got[2].separation(CENTRE).arcsec < 3  # pixel (511, 511) is beside the centre


@pytest.mark.parametrize("name", FRAMES)
def test_there_and_back_is_the_same_pixel(name):
    frame, words = FRAMES[name]
    wcs = tan_wcs(frame, **words)
    x, y = from_icrs(wcs, *to_icrs(wcs, X, Y))
    np.testing.assert_allclose(x, X, atol=1e-4)
    np.testing.assert_allclose(y, Y, atol=1e-4)


def test_a_galactic_wcs_and_one_in_icrs_say_the_same():
    ours = tan_wcs(ICRS(), radesys="ICRS")
    theirs = tan_wcs(Galactic(), axes=("GLON-TAN", "GLAT-TAN"))
    ra, dec = to_icrs(ours, X, Y)
    again = to_icrs(theirs, *from_icrs(theirs, ra, dec))
    sky = SkyCoord(ra, dec, unit="deg")
    assert sky.separation(SkyCoord(*again, unit="deg")).arcsec.max() < 1e-3
    wrong = theirs.all_pix2world(X, Y, 0)[0]
    assert np.abs(wrong - ra).min() > 10  # what a reader of raw numbers would write


def test_right_ascension_is_never_negative():
    wcs = tan_wcs(ICRS(), radesys="ICRS")
    wcs.wcs.crval = [0.0, 0.0]
    wcs.wcs.set()
    ra, _ = to_icrs(wcs, X, Y)
    assert ((ra >= 0) & (ra < 360)).all()
    assert ra.max() > 359
    assert ra.min() < 1


def test_what_is_not_on_the_sky_is_nan_and_does_not_take_the_rest_along():
    wcs = tan_wcs(Galactic(), axes=("GLON-TAN", "GLAT-TAN"))
    opposite = CENTRE.directional_offset_by(0, 180 * 1.0 * SkyCoord(0, 0, unit="deg").ra.unit)
    x, y = from_icrs(wcs, [CENTRE.ra.deg, opposite.ra.deg, np.nan], [CENTRE.dec.deg, 12.7, 3.0])
    assert x[0] == pytest.approx(511.5, abs=1e-3)
    assert np.isnan(x[2])
    assert np.isnan(y[2])
    lon, lat = change_frame(np.array([10.0, np.nan]), np.array([5.0, 5.0]), ICRS(), Galactic())
    assert np.isfinite([lon[0], lat[0]]).all()
    assert np.isnan([lon[1], lat[1]]).all()


def test_nothing_in_nothing_out():
    wcs = tan_wcs(ICRS(), radesys="ICRS")
    for result in (to_icrs(wcs, [], []), from_icrs(wcs, [], [])):
        assert [len(column) for column in result] == [0, 0]


def test_a_frame_that_is_not_known_is_taken_for_icrs():
    wcs = WCS(naxis=2)
    assert isinstance(celestial_frame(wcs), ICRS)
