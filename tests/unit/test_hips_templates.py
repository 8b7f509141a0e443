"""Templates from the tiles of a HiPS: a known sky, written and found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy_healpix import HEALPix
from reproject import reproject_interp
from reproject.hips import reproject_to_hips
from scipy.ndimage import binary_dilation

from core.errors import NoTemplate
from core.image import MaskBit
from core.resample import resample
from core.tangent import TangentGrid
from core.templates.hips.assembly import HipsLimits
from core.templates.hips.provider import HipsTemplates
from core.templates.hips.survey import HipsSurvey
from core.templates.template import Identifying, TemplateRequest
from tests.archive.hips import StarField, write_hips, write_properties
from tests.unit.made_hips import (
    LEVEL,
    ORDER,
    PLACES,
    SCALE,
    SHAPE,
    WIDTH,
    exposure,
    local,
    measured,
    sky_at,
)


@pytest.mark.parametrize(("ra", "dec", "angle", "mirrored", "frame"), PLACES)
def test_fluxes_and_places_of_stars_come_through(
    tmp_path: Path, ra: float, dec: float, angle: float, mirrored: bool, frame: str
) -> None:
    request, sky = exposure(ra, dec, angle=angle, mirrored=mirrored), sky_at(ra, dec)
    write_hips(
        tmp_path, sky, request.wcs, SHAPE, order=ORDER, width=WIDTH, frame=frame, padded=False
    )
    template = local(tmp_path).find(request)
    image = template.image
    pixel = template.image.wcs.pixel_scale_matrix
    area = abs(np.linalg.det(pixel)) * 3600**2
    # On its own grid: as exact as float32 and a kernel of six pixels can be.
    level = LEVEL * area / sky.pixel**2
    np.testing.assert_allclose(measured(image, sky, level), 1.0, atol=5e-4)
    # On the exposure's grid: the true sky, pixel by pixel, to 4 % of the brightest star's peak. Its
    # pixels are 1.24 of the template's, and the mean of two by two samples widens a star by 2 %.
    gridded = resample(image, request.wcs, SHAPE)
    per_pixel = SCALE**2 / sky.pixel**2
    truth = sky.image(request.wcs, SHAPE) * per_pixel
    assert not gridded.mask.any()
    np.testing.assert_allclose(gridded.data, truth, atol=0.04 * truth.max())
    np.testing.assert_allclose(measured(gridded, sky, LEVEL * per_pixel), 1.0, atol=4e-3)
    assert template.facts.overlap == 1.0
    assert template.facts.provider == "hips"
    assert not template.on_grid


def test_fluxes_come_through_on_the_seams_of_the_faces(tmp_path: Path) -> None:
    for name, place in (("corner", (90.0, 41.81)), ("cap", (180.0, -60.0)), ("pole", (0.0, 90.0))):
        request, sky = exposure(*place, angle=10.0), sky_at(*place)
        folder = tmp_path / name
        write_hips(folder, sky, request.wcs, SHAPE, order=ORDER, width=WIDTH)
        image = local(folder).find(request).image
        level = LEVEL * (image.wcs.pixel_scale_matrix[0] @ image.wcs.pixel_scale_matrix[0])
        np.testing.assert_allclose(
            measured(image, sky, level * 3600**2 / sky.pixel**2), 1.0, atol=0.02
        )


@pytest.mark.parametrize("scale", [0.35, 2.0, 5.0])
def test_other_pixel_scales(tmp_path: Path, scale: float) -> None:
    """Finer than the HiPS, and up to five times coarser: from coarser tiles, averages of four."""
    coarser = max(scale, 1.0)
    request = exposure(scale=scale, shape=(110, 120) if scale > 1 else SHAPE)
    sky = sky_at(sigma=1.3 * coarser, radius=0.015 * coarser, number=8)
    write_hips(
        tmp_path, sky, request.wcs, request.shape, order=ORDER, width=WIDTH, lowest=ORDER - 3
    )
    template = local(tmp_path).find(request)
    own = 3600 * np.sqrt(abs(np.linalg.det(template.image.wcs.pixel_scale_matrix)))
    assert own == pytest.approx({0.35: 0.805, 2.0: 1.61, 5.0: 3.22}[scale], rel=1e-3)
    gridded = resample(template.image, request.wcs, request.shape)
    truth = LEVEL * scale**2 / sky.pixel**2
    assert np.median(gridded.data) == pytest.approx(truth, rel=1e-4)
    if scale > 1:
        np.testing.assert_allclose(measured(gridded, sky, truth), 1.0, atol=0.01)


def test_a_tree_made_by_reproject_is_read(tmp_path: Path) -> None:
    request, sky = exposure(), sky_at(sigma=2.0)
    shape = (420, 440)
    wcs = exposure(scale=0.6, shape=shape).wcs  # the survey's own image
    data = sky.image(wcs, shape)
    folder = tmp_path / "made"
    reproject_to_hips(
        (data, wcs),
        coord_system_out="galactic",
        reproject_function=reproject_interp,
        output_directory=str(folder),
        level=ORDER,
        tile_size=WIDTH,
        order="bicubic",
    )
    template = local(folder, pixel_scale=0.6).find(request)
    gridded = resample(template.image, request.wcs, SHAPE)
    level = LEVEL * SCALE**2 / sky.pixel**2
    np.testing.assert_allclose(measured(gridded, sky, level), 1.0, atol=0.01)
    truth = sky.image(request.wcs, SHAPE) * SCALE**2 / sky.pixel**2
    good = gridded.mask == 0
    assert good.mean() > 0.9
    np.testing.assert_allclose(gridded.data[good], truth[good], atol=0.02 * truth.max())


def test_the_zero_point_is_that_of_the_surveys_pixels(tmp_path: Path) -> None:
    request, sky = exposure(), sky_at()
    write_hips(tmp_path, sky, request.wcs, SHAPE, order=ORDER, width=WIDTH, s_pixel_scale=None)
    one = local(tmp_path, zero_point=25.0, pixel_scale=0.6).find(request)
    assert one.image.facts.zero_point == one.facts.zero_point == 25.0
    assert one.image.facts.zero_point_origin == "survey"
    # Without a size, the values count as fluxes in the finest pixels of the HiPS.
    other = local(tmp_path).find(request)
    ratio = np.median(other.image.data) / np.median(one.image.data)
    assert ratio == pytest.approx(0.6**2 / 0.805192**2, rel=1e-4)
    with pytest.raises(ValueError, match="give pixel_scale too"):
        HipsSurvey(hips="CDS/P/x", zero_point=25.0)


@pytest.mark.parametrize("bitpix", [16, 32])
def test_whole_numbers_with_blank_and_scale(tmp_path: Path, bitpix: int) -> None:
    request, sky = exposure(), sky_at()
    write_hips(tmp_path, sky, request.wcs, SHAPE, order=ORDER, width=WIDTH)
    as_floats = local(tmp_path).find(request).image
    blank = -(2 ** (bitpix - 1))
    for path in tmp_path.rglob("Npix*.fits"):
        values = fits.getdata(path)
        stored = np.rint((values - 30_000) / 2).clip(blank + 1).astype(f">i{bitpix // 8}")
        stored[:10, :10] = blank
        text = fits.Header(
            {"SIMPLE": True, "BITPIX": bitpix, "NAXIS": 2, "NAXIS1": WIDTH, "NAXIS2": WIDTH}
            | {"BSCALE": 2.0, "BZERO": 30_000.0, "BLANK": blank}
        )
        path.write_bytes(text.tostring().encode() + stored.tobytes())
    as_integers = local(tmp_path).find(request).image
    # Beside a hole, what is missing is made up for.
    both = ~binary_dilation((as_floats.mask | as_integers.mask) != 0, iterations=4)
    assert 0.02 < np.mean(as_integers.mask != 0) < 0.4
    np.testing.assert_allclose(as_integers.data[both], as_floats.data[both], atol=4.0)


def test_partial_cover_is_masked_or_refused(tmp_path: Path) -> None:
    request = exposure()
    sky = sky_at(covers=lambda ra, dec: ra > 150.005)
    write_hips(tmp_path, sky, request.wcs, SHAPE, order=ORDER, width=WIDTH)
    template = local(tmp_path).find(request)
    assert template.facts.overlap == pytest.approx(0.5 - 0.005 * 3600 / 240, abs=0.03)
    holes = (template.image.mask & MaskBit.NO_DATA) != 0
    assert np.isfinite(template.image.data).all()
    assert 0.4 < holes.mean() < 0.7
    with pytest.raises(NoTemplate, match=r"covers 4\d % of the exposure, 80 % are needed"):
        local(tmp_path).find(replace(request, min_overlap=0.8))


def test_a_field_outside_names_what_was_looked_for(tmp_path: Path) -> None:
    sky = sky_at()
    write_hips(
        tmp_path, sky, exposure().wcs, SHAPE, order=ORDER, width=WIDTH, moc_sky_fraction=0.25
    )
    with pytest.raises(
        NoTemplate, match=r"none of its \d+ tiles of order 11 around RA 20\.0000 Dec"
    ) as e:
        local(tmp_path).find(exposure(20.0, -40.0))
    assert "covers 25 % of the sky" in str(e.value)
    assert not e.value.retriable


@pytest.mark.parametrize("kind", ["truncated", "size", "rubbish"])
def test_a_damaged_local_tile_is_masked(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    request, sky = exposure(), sky_at()
    write_hips(tmp_path, sky, request.wcs, SHAPE, order=ORDER, width=WIDTH)
    middle = HEALPix(2**ORDER, order="nested").lonlat_to_healpix
    number = int(middle(150.0 * u.deg, 2.0 * u.deg))
    path = next(tmp_path.rglob(f"Npix{number}.fits"))
    body = path.read_bytes()
    path.write_bytes(
        {
            "truncated": body[:9000],
            "size": body.replace(b"=                  128", b"=                   64"),
            "rubbish": b"<html>",
        }[kind]
    )
    template = local(tmp_path).find(request)
    assert np.mean(template.image.mask != 0) > 0.05
    assert template.facts.overlap < 0.95
    assert "tile left out" in caplog.text


def test_bands_choose_the_survey(tmp_path: Path) -> None:
    request, sky = exposure(), sky_at()
    for name in ("r", "any"):
        write_hips(tmp_path / name, sky, request.wcs, SHAPE, order=ORDER, width=WIDTH)
    surveys = [
        HipsSurvey(tree=str(tmp_path / "none"), band="g"),
        HipsSurvey(tree=str(tmp_path / "any")),
        HipsSurvey(tree=str(tmp_path / "r"), band="r"),
    ]
    assert HipsTemplates(surveys).find(request).facts.template_id == "r"
    other = HipsTemplates(surveys).find(replace(request, band="z"))
    assert other.facts.template_id == "any"
    with pytest.raises(NoTemplate, match="no HiPS for band z: the settings have g"):
        HipsTemplates(surveys[:1]).find(replace(request, band="z"))
    with pytest.raises(NoTemplate, match="is no HiPS, it has no file 'properties'"):
        HipsTemplates(surveys[:1]).find(replace(request, band="g"))
    with pytest.raises(NoTemplate, match="no WCS"):
        HipsTemplates(surveys).find(replace(request, wcs=None))


def test_what_determines_the_pixels_identifies_them(tmp_path: Path) -> None:
    request = exposure()
    write_hips(tmp_path, sky_at(), request.wcs, SHAPE, order=ORDER, width=WIDTH)
    provider = local(tmp_path)
    assert isinstance(provider, Identifying)
    identity = provider.identify(request)
    assert identity
    assert identity == provider.find(request).identity == local(tmp_path).identify(request)
    assert local(tmp_path, pixel_scale=0.7).identify(request) != identity
    assert provider.identify(exposure(150.02)) != identity  # other tiles
    tile = next(iter(sorted(tmp_path.rglob("Npix*.fits"))))
    tile.write_bytes(tile.read_bytes() + b" ")
    assert provider.identify(request) != identity
    with pytest.raises(NoTemplate, match="no HiPS for band z"):
        provider.identify(replace(request, band="z"))


def test_a_template_that_would_be_too_large_is_refused(tmp_path: Path) -> None:
    write_properties(tmp_path, hips_order=20, hips_frame="equatorial")
    provider = HipsTemplates([HipsSurvey(tree=str(tmp_path))], limits=HipsLimits(max_pixels=10_000))
    with pytest.raises(NoTemplate, match="larger than the limit of 10000"):
        provider.find(exposure())


def test_saturated_stars_are_flagged(tmp_path: Path) -> None:
    request, sky = exposure(), sky_at()
    write_hips(tmp_path, sky, request.wcs, SHAPE, order=ORDER, width=WIDTH)
    image = local(tmp_path, saturation=5_000.0).find(request).image
    flagged = (image.mask & MaskBit.SATURATED) != 0
    factor = 0.805192**2 / 0.6**2
    assert flagged[(image.data > 5_000 * factor) & (image.mask & MaskBit.NO_DATA == 0)].all()
    assert 0 < flagged.mean() < 0.02


@pytest.mark.parametrize(("ra", "dec"), [(150.0, 2.0), (33.0, 75.0)])
def test_the_flux_of_a_single_star_is_conserved(tmp_path: Path, ra: float, dec: float) -> None:
    # HEALPix pixels are diamonds, whose scale differs with the direction on the plane.
    order, width = 13, 128
    pixel = np.degrees(np.sqrt(4 * np.pi / (12 * 4.0**order))) / width * 3600
    shape = (90, 90)
    grid = TangentGrid(ra, dec, pixel / 3600, 0.0, shape, (44.5, 44.5)).wcs
    for k, (dx, dy) in enumerate(((3.3, -7.8), (-4.9, 2.1), (0.2, 8.6))):
        place = ra + dx * pixel / 3600 / np.cos(np.radians(dec)), dec + dy * pixel / 3600
        star = StarField(
            np.array([place[0]]), np.array([place[1]]), np.array([1e4]), 2.5 / 2.3548 * pixel, pixel
        )
        write_hips(tmp_path / str(k), star, grid, shape, order=order, width=width)
        survey = HipsSurvey(tree=str(tmp_path / str(k)), band="r")
        request = TemplateRequest(grid, shape, band="r", min_overlap=0.3)
        found = HipsTemplates([survey]).find(request)
        assert found.image.data.sum(dtype=float) == pytest.approx(1e4, rel=1e-4)
