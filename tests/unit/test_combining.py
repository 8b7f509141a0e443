"""Templates that cover a part each, as one that covers the whole."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import Sip

from core.celestial import from_icrs, to_icrs
from core.errors import UnusableInput
from core.image import Image, MaskBit
from core.templates.combining import choose_together, grid_around
from core.templates.directory import DirectoryTemplates
from core.templates.index import Frame
from tests.unit.test_templates_directory import SHAPE, put, request, tan


def places(*columns):
    """Cover some of ten columns."""
    covered = np.zeros((4, 10), bool)
    covered[:, list(columns)] = True
    return covered


def test_those_are_chosen_that_add_most():
    maps = {
        "best": places(0, 1, 2, 3),
        "same": places(0, 1, 2),
        "small": places(9),
        "large": places(3, 4, 5, 6, 7),
        "worse": places(4, 5, 6, 7),
    }
    chosen, share = choose_together(list(maps), lambda name: maps[name])
    assert chosen == ["best", "large", "small"]
    assert share == pytest.approx(0.9)


def half(shift):
    """A grid that is moved along x by a part of the frame, in whole pixels."""
    wcs = tan()
    wcs.wcs.crpix[0] += shift * SHAPE[1]
    return wcs


def test_two_halves_make_a_whole(tmp_path):
    a = put(tmp_path / "a.fits", half(-0.45), seed=1, FILTER="r", MAGZP=25.0, EXPTIME=60.0)
    b = put(tmp_path / "b.fits", half(0.45), seed=2, FILTER="r", MAGZP=27.5, NCOMBINE=4)
    templates = DirectoryTemplates(tmp_path)
    template = templates.find(request())
    assert template.facts.template_id == "a.fits + b.fits"
    assert template.facts.overlap == 1.0
    assert template.facts.zero_point == 25.0
    assert template.facts.n_frames == 5
    assert template.sources == ("a.fits", "b.fits")
    assert template.identity == templates.identify(request())
    for path in (a, b):
        assert sum(part.startswith(f"{path} ") for part in template.identity) == 1
    # Their pixels are those of the files, at one zero point and one level, not interpolated.
    image = template.image
    x, y = from_icrs(image.wcs, *to_icrs(tan(), [0.0], [0.0]))
    box = slice(round(y[0]), round(y[0]) + 60), slice(round(x[0]), round(x[0]) + 80)
    data = image.data[box]
    for ours, theirs, factor in (
        (data[:, 50:], fits.getdata(a)[:, 14:44], 1.0),
        (data[:, :30], fits.getdata(b)[:, 36:66], 10 ** (0.4 * (25.0 - 27.5))),
    ):
        scaled = theirs * factor
        np.testing.assert_allclose(ours - np.median(ours), scaled - np.median(scaled), atol=2e-4)
    assert (image.mask[box] == 0).all()
    assert image.shape == (60 + 122, 80 + 122)
    assert (image.mask[:50] == MaskBit.NO_DATA).all()
    assert set(np.unique(template.origin[box])) == {0, 1}


def test_parts_that_are_too_small_alone_are_enough_together(tmp_path):
    put(tmp_path / "left.fits", half(-0.8), FILTER="r", MAGZP=25.0)
    put(tmp_path / "right.fits", half(0.8), FILTER="r", MAGZP=25.0)
    found = DirectoryTemplates(tmp_path).find(request(min_overlap=0.3))
    assert found.facts.template_id == "left.fits + right.fits"
    assert found.facts.overlap == pytest.approx(0.4, abs=0.03)


def test_what_covers_all_needs_no_other(tmp_path):
    put(tmp_path / "all.fits", tan(), FILTER="r", MAGZP=25.0)
    put(tmp_path / "left.fits", half(-0.5), FILTER="r", MAGZP=25.0, MAGLIM=30.0)
    template = DirectoryTemplates(tmp_path).find(request())
    assert template.facts.template_id == "all.fits"
    assert template.origin is None


@pytest.mark.parametrize(
    "cards", [{"FILTER": "r"}, {"FILTER": "g", "MAGZP": 25.0}, {"MAGZP": 25.0}]
)
def test_what_cannot_be_brought_to_one_scale_is_not_combined(tmp_path, cards):
    put(tmp_path / "left.fits", half(-0.4), FILTER="r", MAGZP=25.0)
    put(tmp_path / "right.fits", half(0.5), **cards)
    template = DirectoryTemplates(tmp_path).find(request())
    assert template.facts.template_id == "left.fits"
    assert template.facts.overlap == pytest.approx(0.6, abs=0.03)


def test_without_zero_points_nothing_is_combined(tmp_path):
    put(tmp_path / "a.fits", half(-0.4), FILTER="r")
    put(tmp_path / "b.fits", half(0.5), FILTER="r")
    assert DirectoryTemplates(tmp_path).find(request()).facts.template_id == "a.fits"


def test_where_combining_fails_the_best_is_taken(tmp_path):
    put(tmp_path / "left.fits", half(-0.4), FILTER="r", MAGZP=25.0)
    broken = put(tmp_path / "right.fits", half(0.5), FILTER="r", MAGZP=25.0)
    data, header = fits.getdata(broken, header=True)
    fits.writeto(broken, data * np.nan, header, overwrite=True)
    assert DirectoryTemplates(tmp_path).find(request()).facts.template_id == "left.fits"


def distorted():
    wcs = tan(rotation=30.0)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    a = np.zeros((3, 3))
    a[2, 0] = 1e-4
    wcs.sip = Sip(a, a, None, None, wcs.wcs.crpix)
    return wcs


@pytest.mark.parametrize("native", [tan(10.2, rotation=30.0), distorted()])
def test_a_grid_covers_the_exposure_at_the_scale_of_the_template(native):
    image = Image(np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint16), wcs=native)
    frame = Frame.of(tan(), SHAPE)
    wcs, (ny, nx) = grid_around(image, frame, max_pixels=10**6)
    edge = np.array([-0.5, SHAPE[1] - 0.5]), np.array([-0.5, SHAPE[0] - 0.5])
    x, y = from_icrs(wcs, *to_icrs(tan(), *np.meshgrid(*edge)))
    assert min(x.min(), y.min(), nx - 1 - x.max(), ny - 1 - y.max()) == pytest.approx(60, abs=1.01)
    # The same scale and the same orientation as the template, at its centre.
    centre = np.array([40.0, 41.0, 40.0]), np.array([30.0, 30.0, 31.0])
    x, y = from_icrs(wcs, *to_icrs(native, *centre))
    np.testing.assert_allclose([x[1] - x[0], y[1] - y[0]], [1, 0], atol=0.002)
    np.testing.assert_allclose([x[2] - x[0], y[2] - y[0]], [0, 1], atol=0.002)
    if native.sip is None:  # and its very pixels
        np.testing.assert_allclose([x % 1, y % 1], np.round([x % 1, y % 1]), atol=1e-6)
    with pytest.raises(UnusableInput, match="more than the limit of 1000"):
        grid_around(image, frame, max_pixels=1000)
