"""Which template of a folder is chosen, and what is said when none is."""

import gzip
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from core.errors import InputUnavailable, NoTemplate, UnusableInput
from core.image import MaskBit
from core.templates import TemplateRequest
from core.templates.directory import DirectoryTemplates
from core.templates.siblings import Siblings, is_side_plane, planes_by_stem, siblings_of
from core.templates.single import SingleTemplate

SHAPE = (60, 80)
SCALE = 0.01  # degrees a pixel: frames of 0.8 x 0.6 degrees


def tan(ra=10.0, dec=20.0, shape=SHAPE, rotation=0.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    c, s = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    wcs.wcs.cd = SCALE * np.array([[-c, s], [s, c]])
    return wcs


def put(path, wcs, shape=SHAPE, seed=0, **cards):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = wcs.to_header()
    header.update(cards)
    data = np.random.default_rng(seed).normal(100, 5, shape).astype(np.float32)
    fits.PrimaryHDU(data, header).writeto(path, overwrite=True)
    return path


def request(wcs=None, band="r", **values):
    return TemplateRequest(wcs or tan(), SHAPE, band, **values)


def chosen(folder, *args, **values):
    return DirectoryTemplates(folder).find(request(*args, **values)).facts.template_id


def test_the_one_that_covers_most(tmp_path):
    put(tmp_path / "part.fits", tan(10.3), FILTER="r", EXPTIME=9000.0)
    put(tmp_path / "deep" / "all.fits", tan(10.02), FILTER="ZTF_r", EXPTIME=30.0, MAGZP=25.5)
    put(tmp_path / "far.fits", tan(40.0), FILTER="r")
    template = DirectoryTemplates(tmp_path).find(request())
    assert template.facts.template_id == os.path.join("deep", "all.fits")
    assert template.facts.provider == "directory"
    assert template.facts.zero_point == 25.5
    assert template.facts.overlap == pytest.approx(
        1 - 0.02 * np.cos(np.radians(20)) / 0.8, abs=0.03
    )
    assert not template.on_grid
    assert template.image.wcs is not None


@pytest.mark.parametrize("shift", [0.1, 0.2, 0.4])
@pytest.mark.parametrize(("ra", "dec"), [(10, 0), (0, 0), (359.9, -60), (123, 89.9), (7, -90)])
def test_overlap_is_right_everywhere_on_the_sphere(tmp_path, ra, dec, shift):
    science = tan(ra, dec)
    # A template moved by a part of the frame along x, by its own pixel grid.
    template = science.deepcopy()
    template.wcs.crpix[0] += shift * SHAPE[1]
    put(tmp_path / "a.fits", template, FILTER="r")
    found = DirectoryTemplates(tmp_path).find(request(science, min_overlap=0.1))
    assert found.facts.overlap == pytest.approx(1 - shift, abs=0.025)


def test_overlap_of_a_rotated_frame(tmp_path):
    put(tmp_path / "a.fits", tan(rotation=90), FILTER="r")
    found = DirectoryTemplates(tmp_path).find(request())
    assert found.facts.overlap == pytest.approx(0.75, abs=0.03)  # 60 of 80 columns


def test_band_then_depth_then_seeing(tmp_path):
    put(tmp_path / "g.fits", tan(), FILTER="g", MAGLIM=25.0)
    put(tmp_path / "none.fits", tan(), MAGLIM=24.0)
    assert chosen(tmp_path) == "none.fits"
    put(tmp_path / "r1.fits", tan(), FILTER="r", MAGLIM=21.0, SEEING=1.0)
    assert chosen(tmp_path) == "r1.fits"
    put(tmp_path / "r2.fits", tan(), FILTER="r", MAGLIM=22.0, SEEING=2.0)
    assert chosen(tmp_path) == "r2.fits"
    put(tmp_path / "r3.fits", tan(), FILTER="r", MAGLIM=22.0, SEEING=1.5)
    assert chosen(tmp_path) == "r3.fits"


def test_an_exposure_without_a_band_takes_any(tmp_path):
    put(tmp_path / "g.fits", tan(), FILTER="g")
    assert chosen(tmp_path, band=None) == "g.fits"


def test_never_the_exposure_itself(tmp_path):
    path = put(tmp_path / "a.fits", tan(), FILTER="r")
    link = tmp_path / "elsewhere.fits"
    link.symlink_to(path)
    with pytest.raises(NoTemplate, match="2 the exposure itself"):
        chosen(tmp_path, exclude=(str(link),))


def test_files_that_come_change_and_go(tmp_path):
    templates = DirectoryTemplates(tmp_path)
    with pytest.raises(NoTemplate, match="0 images looked at"):
        templates.find(request())
    put(tmp_path / "a.fits", tan(), FILTER="r", seed=1)
    assert templates.find(request()).facts.template_id == "a.fits"
    put(tmp_path / "a.fits", tan(40.0), FILTER="r", COMMENT="x" * 4000)
    with pytest.raises(NoTemplate, match=r"elsewhere on the sky \(nearest a\.fits"):
        templates.find(request())
    put(tmp_path / "b.fits", tan(), FILTER="r", seed=2)
    assert templates.find(request()).facts.template_id == "b.fits"
    (tmp_path / "b.fits").unlink()
    with pytest.raises(NoTemplate):
        templates.find(request())


def test_unreadable_files_are_passed_over(tmp_path):
    good = put(tmp_path / "good.fits", tan(), FILTER="r")
    (tmp_path / "short.fits").write_bytes(good.read_bytes()[:7000])
    (tmp_path / "noise.fits.gz").write_bytes(b"\x1f\x8b garbage")
    (tmp_path / "notes.txt").write_text("not mine")
    put(tmp_path / ".unfinished.fits", tan(), FILTER="r", MAGLIM=30.0)
    fits.PrimaryHDU(np.ones(SHAPE, np.float32)).writeto(tmp_path / "nowcs.fits")
    assert chosen(tmp_path) == "good.fits"
    good.unlink()
    with pytest.raises(NoTemplate, match="3 unreadable"):
        chosen(tmp_path)


def test_a_circle_of_links_is_passed_over_and_told(tmp_path, caplog):
    put(tmp_path / "good.fits", tan(), FILTER="r")
    (tmp_path / "circle.fits").symlink_to("circle.fits")
    assert chosen(tmp_path) == "good.fits"
    assert "circle.fits is left out: " in caplog.text


def test_a_template_with_bad_pixels_behind_a_good_header_gives_way_to_the_next(tmp_path):
    put(tmp_path / "good.fits", tan(), FILTER="r", MAGLIM=20.0)
    header = tan().to_header()
    header.update({"FILTER": "r", "MAGLIM": 25.0})
    fits.PrimaryHDU(np.full(SHAPE, np.nan, np.float32), header).writeto(tmp_path / "nan.fits")
    assert chosen(tmp_path) == "good.fits"


def test_a_gzipped_template_that_is_cut_off_gives_way_to_the_next(tmp_path):
    put(tmp_path / "good.fits", tan(), FILTER="r", MAGLIM=20.0)
    deep = put(tmp_path / "deep.fits", tan(), FILTER="r", MAGLIM=25.0)
    packed = gzip.compress(deep.read_bytes())
    deep.unlink()
    (tmp_path / "deep.fits.gz").write_bytes(packed)
    assert chosen(tmp_path) == "deep.fits.gz"
    (tmp_path / "deep.fits.gz").write_bytes(packed[:-2000])
    assert chosen(tmp_path) == "good.fits"
    (tmp_path / "good.fits").unlink()
    with pytest.raises(NoTemplate, match=r"1 failed .*truncated"):
        chosen(tmp_path)


def test_what_the_refusal_says(tmp_path):
    put(tmp_path / "g.fits", tan(), FILTER="g")
    put(tmp_path / "part.fits", tan(10.7), FILTER="r")
    put(tmp_path / "far.fits", tan(12.0), FILTER="r")
    with pytest.raises(NoTemplate) as caught:
        chosen(tmp_path)
    message = str(caught.value)
    for part in (
        "RA 10.0000 Dec +20.0000, band r: 3 images looked at",
        "1 of band g (g.fits)",
        "1 covering too little (at most 17 % by part.fits, 30 % are needed)",
        "1 elsewhere on the sky (nearest far.fits, 1.88 deg away)",
    ):
        assert part in message
    assert "\n" not in message


def test_a_folder_that_is_not_there_may_come_back(tmp_path):
    with pytest.raises(InputUnavailable, match="cannot be read"):
        chosen(tmp_path / "nowhere")


def test_planes_beside_the_file_and_in_it(tmp_path):
    put(tmp_path / "a.fits", tan(), FILTER="r")
    mask, weight = np.zeros(SHAPE, np.uint8), np.full(SHAPE, 0.25, np.float32)
    mask[5, 6] = 1
    fits.PrimaryHDU(mask, tan().to_header()).writeto(tmp_path / "a.mask.fits")
    fits.PrimaryHDU(weight, tan().to_header()).writeto(tmp_path / "a_weight.fits.gz")
    template = DirectoryTemplates(tmp_path).find(request())
    assert template.facts.template_id == "a.fits"
    assert template.image.mask[5, 6] == MaskBit.BAD
    np.testing.assert_allclose(template.image.variance, 4.0)


def test_a_mask_that_comes_later_is_noticed(tmp_path):
    put(tmp_path / "a.fits", tan(), FILTER="r")
    templates = DirectoryTemplates(tmp_path)
    assert not templates.find(request()).image.bad.any()
    mask = np.zeros(SHAPE, np.uint8)
    mask[5, 6] = 1
    fits.PrimaryHDU(mask).writeto(tmp_path / "a.mask.fits")
    assert templates.find(request()).image.mask[5, 6] == MaskBit.BAD


def test_every_image_of_a_mosaic_file(tmp_path):
    images = [
        fits.ImageHDU(
            np.random.default_rng(i).normal(100, 5, SHAPE).astype(np.float32),
            tan(10.0 + i).to_header(),
            name=f"CCD{i}",
        )
        for i in range(3)
    ]
    fits.HDUList([fits.PrimaryHDU(header=fits.Header({"FILTER": "r"})), *images]).writeto(
        tmp_path / "m.fits"
    )
    template = DirectoryTemplates(tmp_path).find(request(tan(11.0)))
    assert template.facts.template_id == "m.fits[2]"
    np.testing.assert_array_equal(template.image.data, images[1].data)


@pytest.mark.parametrize(
    ("name", "others", "expected"),
    [
        ("a.fits", ["a.mask.fits", "b_mask.fits"], Siblings(mask="a.mask.fits")),
        ("a.fits.fz", ["a_wht.fits.fz", "a_var.fit"], Siblings(None, "a_wht.fits.fz", "a_var.fit")),
        ("x_sciimg.fits", ["x_mskimg.fits.gz"], Siblings(mask="x_mskimg.fits.gz")),
        (
            "c4d_ooi_r_1.fits",
            ["c4d_ood_r_1.fits", "c4d_oow_r_1.fits"],
            Siblings("c4d_ood_r_1.fits", "c4d_oow_r_1.fits"),
        ),
    ],
)
def test_names_of_planes(name, others, expected):
    assert siblings_of(name, planes_by_stem([name, *others])) == expected
    assert all(is_side_plane(other) for other in others)
    assert not is_side_plane(name)


def _find_in(folder):
    return chosen(folder)


def test_several_processes_at_once(tmp_path):
    put(tmp_path / "a.fits", tan(), FILTER="r")
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert set(pool.map(_find_in, [tmp_path] * 6)) == {"a.fits"}


def test_the_named_template(tmp_path):
    path = put(tmp_path / "a.fits", tan(10.1), FILTER="r", MAGZP=24.0)
    template = SingleTemplate(path).find(request())
    assert template.facts.provider == "file"
    assert template.facts.zero_point == 24.0
    assert 0.8 < template.facts.overlap < 0.95
    with pytest.raises(NoTemplate, match=r"a\.fits: the template lies 28.* deg away"):
        SingleTemplate(path).find(request(tan(40.0)))
    with pytest.raises(NoTemplate, match=r"covers only 8\d %"):
        SingleTemplate(path).find(request(min_overlap=0.99))


def test_the_aligned_template(tmp_path):
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(np.random.default_rng(0).normal(9, 1, SHAPE).astype(np.float32)).writeto(path)
    aligned = replace(request(), wcs=None)
    assert SingleTemplate(path, aligned=True).find(aligned).on_grid
    with pytest.raises(UnusableInput, match="80 x 60 pixels and the exposure 7 x 5"):
        SingleTemplate(path, aligned=True).find(replace(aligned, shape=(5, 7)))
    with pytest.raises(UnusableInput, match="no celestial WCS"):
        SingleTemplate(path).find(request())
