"""A template that was projected once serves the next exposures of its grid, to the last bit."""

import dataclasses
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import core.templates
from core.deadline import Deadline
from core.errors import InputUnavailable, NoTemplate, NotInArchive
from core.exposure import TemplateFacts
from core.image import MaskBit
from core.noise import measure_sky, with_noise
from core.stars import find_sources
from core.templates.arrayfile import read_arrays, write_arrays
from core.templates.cache import NoCache, TemplateCache
from core.templates.cache.layout import Place
from core.templates.cache.locks import exclusive
from core.templates.matching import to_science_grid
from core.templates.projected import key_of, producing_code, template_on_grid
from core.templates.template import Template, TemplateRequest
from tests.unit.test_matching import on_template, star_field, wcs_of

SHAPE = (300, 310)
NATIVE_SHAPE = (400, 410)
FACTS = TemplateFacts("given", "one.fits", band="r", zero_point=25.0, n_frames=7, mjd_first=58000.5)
N_STARS = 90


class Given:
    """Has one template, says which, and counts how often it is read."""

    name = "given"

    def __init__(self, template, says=None):
        self.template = template
        self.says = template.identity if says is None else says
        self.reads = 0

    def identify(self, request):
        return self.says or None

    def find(self, request):
        self.reads += 1
        return self.template


class Silent(Given):
    """Cannot say what it has without reading it."""

    identify = None


@pytest.fixture(scope="module")
def stars():
    rng = np.random.default_rng(3)
    return (
        rng.uniform(0, 310, N_STARS),
        rng.uniform(0, 300, N_STARS),
        rng.uniform(4e3, 6e4, N_STARS),
    )


def exposure(stars, shift=(0.0, 0.0), seed=2, wcs=None):
    """An exposure and its sources; its stars are off its WCS by ``shift``."""
    wcs = wcs_of(SHAPE) if wcs is None else wcs
    x, y, flux = stars
    image = star_field(SHAPE, x + shift[0], y + shift[1], flux, fwhm=3.6, seed=seed, wcs=wcs)
    sky = measure_sky(image)
    image = replace(with_noise(image, sky), facts=replace(image.facts, fwhm=3.6, band="r"))
    return image, find_sources(image.data - sky.level, sky.rms, image.mask)


@pytest.fixture(scope="module")
def first(stars):
    return exposure(stars)


@pytest.fixture(scope="module")
def template(stars, first):
    wcs = wcs_of(NATIVE_SHAPE, angle=2.0)
    x, y = on_template(wcs, first[0].wcs, stars[0], stars[1], (1.3, -0.4))
    native = star_field(
        NATIVE_SHAPE, x, y, 2 * stars[2], fwhm=2.8, seed=3, sigma=2.0, wcs=wcs, saturation=6e4,
        mjd_mid=58000.5, band="r",
    )  # fmt: skip
    mask = native.mask.copy()
    mask[190:200, 180:185] = MaskBit.BAD
    native = replace(native, mask=mask, notes=("read with care",))
    return Template(native, FACTS, identity=("one.fits", "1234"))


@pytest.fixture
def cache(tmp_path):
    return TemplateCache(tmp_path / "cache")


def request(image, **options):
    return TemplateRequest(image.wcs, image.shape, image.facts.band, **options)


def placed(provider, science, cache, **options):
    return template_on_grid(provider, request(science[0], **options), *science, cache=cache)


def assert_same(one, other):
    """Compare two values down to the last bit."""
    assert type(one) is type(other)
    if dataclasses.is_dataclass(one):
        for each in dataclasses.fields(one):
            if each.name != "wcs":
                assert_same(getattr(one, each.name), getattr(other, each.name))
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


def test_the_same_exposure_gives_the_same_bits(template, first, cache):
    provider = Given(template)
    expected = to_science_grid(template, *first)
    assert_same(placed(provider, first, None).gridded, expected)
    made = placed(provider, first, cache)
    assert not made.kept
    assert_same(made.gridded, expected)
    assert provider.reads == 2
    kept = placed(provider, first, cache)
    assert kept.kept
    assert_same(kept.gridded, expected)
    assert_same(kept.facts, FACTS)
    assert kept.gridded.image.wcs is first[0].wcs
    assert provider.reads == 2


def test_another_exposure_of_the_grid_is_measured_against_it(template, first, stars, cache):
    provider = Given(template)
    one = placed(provider, first, cache).gridded
    image, sources = exposure(stars, (0.3, -0.2), seed=8)
    image.wcs.wcs.dateobs = "2026-11-22T21:00:00"
    other = placed(provider, (image, sources), cache)
    assert other.kept
    assert provider.reads == 1
    gridded = other.gridded
    np.testing.assert_array_equal(gridded.image.data, one.image.data)
    assert gridded.shift == pytest.approx((1.0, -0.2), abs=0.03)
    assert one.shift == pytest.approx((1.3, -0.4), abs=0.03)
    np.testing.assert_allclose(
        gridded.sources.x - one.sources.x, one.shift[0] - gridded.shift[0], atol=1e-9
    )
    expected = to_science_grid(template, image, sources)
    assert gridded.shift == expected.shift  # measured, and as if nothing had been kept


def test_a_shift_that_the_kernel_would_not_take_up_is_projected_anew(template, first, stars, cache):
    provider = Given(template)
    placed(provider, first, cache)
    moved = exposure(stars, (0.9, 0.0), seed=9)
    fresh = placed(provider, moved, cache)
    assert not fresh.kept
    assert_same(fresh.gridded, to_science_grid(template, *moved))
    again = placed(provider, moved, cache)
    assert again.kept
    assert_same(again.gridded, fresh.gridded)
    assert provider.reads == 2
    # While somebody reads it, it stays as it is.
    with cache.entry(key_of(template.identity, request(moved[0])), lambda path: None) as in_use:
        assert not placed(provider, first, cache).kept
        assert in_use.path.exists()
    assert placed(provider, moved, cache).kept


def test_an_exposure_without_stars_takes_it_as_it_is(template, first, stars, cache):
    provider = Given(template)
    one = placed(provider, first, cache).gridded
    image, sources = first
    empty = sources.select(np.zeros(len(sources), bool))
    other = placed(provider, (image, empty), cache)
    assert other.kept
    assert other.gridded.notes == ("too few common stars: the template's position was not checked",)
    assert other.gridded.shift == one.shift
    np.testing.assert_array_equal(other.gridded.sources.x, one.sources.x)


def test_one_that_covers_too_little_is_for_the_provider_to_judge(template, first, cache):
    partial = replace(template, facts=replace(FACTS, overlap=0.4))
    placed(Given(partial), first, cache)

    class Strict(Given):
        def find(self, request):
            raise NoTemplate("covers only 40 %")

    assert placed(Strict(partial), first, cache).kept
    with pytest.raises(NoTemplate, match="only 40 %"):
        placed(Strict(partial), first, cache, min_overlap=0.5)


def change_template(template, first):
    return Given(replace(template, identity=("one.fits", "1235"))), first


def change_grid(template, first):
    image, sources = first
    wcs = image.wcs.deepcopy()
    wcs.wcs.crpix[0] += 0.02
    return Given(template), (replace(image, wcs=wcs), sources)


def change_band(template, first):
    image, sources = first
    return Given(template), (replace(image, facts=replace(image.facts, band="g")), sources)


@pytest.mark.parametrize("change", [change_template, change_grid, change_band])
def test_it_is_kept_for_what_it_was_made_of_and_for(template, first, cache, change):
    placed(Given(template), first, cache)
    provider, science = change(template, first)
    other = placed(provider, science, cache)
    assert not other.kept
    assert provider.reads == 1
    assert placed(Given(template), first, cache).kept
    assert cache.statistics().kinds["projected"].entries == 2


def solved_anew(image, shift=0.0, turn=0.0):
    """Return an image whose WCS differs by a shift (pixels) and a turn (pixels at the corners)."""
    wcs = image.wcs.deepcopy()
    angle = turn / np.hypot(*image.shape) * 2
    wcs.wcs.cd = wcs.pixel_scale_matrix @ [
        [np.cos(angle), -np.sin(angle)],
        [np.sin(angle), np.cos(angle)],
    ]
    wcs.wcs.crpix = wcs.wcs.crpix + shift
    return replace(image, wcs=wcs)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"shift": 1e-5}, True),
        ({"shift": 0.005}, True),
        ({"turn": 0.006}, True),
        ({"shift": 0.01}, False),
        ({"turn": 0.02}, False),
    ],
)
def test_grids_that_agree_share_what_is_kept(template, first, cache, change, kept):
    image, sources = first
    before = placed(Given(template), first, cache)
    again = solved_anew(image, **change)
    after = placed(Given(template), (again, sources), cache)
    assert after.kept == kept
    assert after.gridded.image.wcs is again.wcs
    if kept:  # for the same exposure nothing is measured that differs
        np.testing.assert_array_equal(after.gridded.image.data, before.gridded.image.data)


def test_grids_do_not_drift_away_step_by_step(template, first, cache):
    image, sources = first
    found = [
        placed(Given(template), (solved_anew(image, 0.005 * step), sources), cache).kept
        for step in range(4)
    ]
    assert found == [False, True, False, True]  # 0, 0.007 of it; 0.014, 0.007 of that


def test_code_that_changed_makes_it_anew(template, first, cache, monkeypatch):
    placed(Given(template), first, cache)
    monkeypatch.setattr("core.templates.projected.code_fingerprint", lambda: "of tomorrow")
    assert not placed(Given(template), first, cache).kept


def test_the_code_that_counts_is_what_a_projection_imports():
    code = producing_code()
    assert {"core.templates.matching", "core.resample", "core.psf", "core.stars"} <= set(code)
    assert {"core.noise", "core.registration", "core.pixel_mapping", "core.image"} <= set(code)
    assert not any(name.startswith(("core.subtraction", "core.templates.cache")) for name in code)
    assert b"def resample(" in code["core.resample"]


def test_the_code_that_counts_is_all_that_makes_templates():
    code = producing_code()
    folder = Path(core.templates.__file__).parent
    functions = {"image", "survey_image", "masking", "pixel_grid", "swarp", "bit_projection"}
    makes_none = {*functions, "warming", "siblings", "__init__", "template"}
    for package in ("", "cells", "mosaic", "hips"):
        for file in (folder / package).glob("*.py"):
            name = ".".join(["core.templates", *filter(None, [package]), file.stem])
            if file.stem not in makes_none:
                assert name in code, name


def test_a_provider_that_gives_another_than_it_said(template, first, cache):
    provider = Given(template, says=("the better one, which is away",))
    assert_same(placed(provider, first, cache).gridded, to_science_grid(template, *first))
    assert placed(provider, first, cache).kept  # found by what it is, though it had to be read
    assert provider.reads == 2
    assert placed(Given(template), first, cache).kept
    assert cache.statistics().kinds["projected"].entries == 1


def test_a_provider_that_cannot_say_is_asked(template, first, cache):
    provider = Silent(template)
    assert not placed(provider, first, cache).kept
    assert placed(provider, first, cache).kept
    assert provider.reads == 2


def test_a_template_of_unknown_origin_is_not_kept(template, first, cache):
    provider = Given(replace(template, identity=()))
    for _ in range(2):
        assert not placed(provider, first, cache).kept
    assert cache.statistics().entries == 0


def test_that_there_is_none_is_not_remembered_here(template, first, cache):
    class Empty(Given):
        def find(self, request):
            raise NotInArchive("a hole")

    with pytest.raises(NotInArchive, match="a hole"):
        placed(Empty(template), first, cache)
    assert "projected" not in cache.statistics().kinds
    assert not placed(Given(template), first, cache).kept

    class Away(Given):
        def find(self, request):
            raise InputUnavailable("tomorrow")

    with pytest.raises(InputUnavailable, match="tomorrow"):
        placed(Away(template, says=("another",)), first, cache)


def test_who_would_wait_too_long_projects_it_for_himself(template, first, cache):
    place = Place.of(cache.folder, key_of(template.identity, request(first[0])))
    place.lock.parent.mkdir(parents=True)
    with exclusive(place.lock, None, "another"):
        made = placed(Given(template), first, cache, deadline=Deadline(0.01))
    assert_same(made.gridded, to_science_grid(template, *first))


def test_without_room_it_works_as_without_a_cache(template, first, tmp_path):
    expected = to_science_grid(template, *first)
    (tmp_path / "file").touch()
    for cache in (
        NoCache(),
        TemplateCache(tmp_path / "file" / "x"),
        TemplateCache(tmp_path / "y", max_bytes=10),
    ):
        provider = Given(template)
        assert_same(placed(provider, first, cache).gridded, expected)
        assert provider.reads == 1


def test_an_aligned_template_is_kept_too(stars, first, cache):
    native = star_field(
        SHAPE, stars[0] + 3.3, stars[1] - 2.2, 2 * stars[2], fwhm=2.8, seed=5, sigma=2.0,
        wcs=first[0].wcs,
    )  # fmt: skip
    aligned = Template(native, FACTS, on_grid=True, identity=("aligned",))
    provider = Given(aligned)
    expected = to_science_grid(aligned, *first)
    assert not placed(provider, first, cache).kept
    kept = placed(provider, first, cache)
    assert kept.kept
    assert_same(kept.gridded, expected)


def test_stages_are_told(template, first, cache):
    stages, found = [], []

    @contextmanager
    def timed(stage):
        stages.append(f"{stage} begins")
        yield
        stages.append(f"{stage} ends")

    def run():
        stages.clear()
        found.clear()
        template_on_grid(
            Given(template), request(first[0]), *first, cache=cache, timed=timed,
            on_found=lambda facts, notes: found.append((facts, tuple(notes))),
        )  # fmt: skip
        assert found == [(FACTS, ("read with care",))]
        for begin, end in zip(stages[::2], stages[1::2], strict=True):
            assert begin.replace("begins", "ends") == end  # one within the other counts twice
        return [stage.split()[0] for stage in dict.fromkeys(stages[::2])]

    assert run() == ["template", "register"]
    assert run() == ["template", "register"]


def test_arrays_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.normal(size=(33, 45)).astype(np.float32),
        "mask": rng.integers(0, 9, (33, 45)).astype(np.uint16),
        "flags": rng.random(7) > 0.5,
        "none": np.zeros((0, 3)),
        "swapped": rng.normal(size=11).astype(">f8"),
        "strided": rng.normal(size=(9, 8))[::2, 1::3],
        "one": np.array(3.5),
    }
    facts = {"fwhm": np.float64(1 / 3), "n": np.int64(4), "text": "é", "list": [1, None]}
    write_arrays(tmp_path / "a", arrays, facts)
    back, told = read_arrays(tmp_path / "a")
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
        assert back[name].flags.writeable
    assert told == facts
    for content in (b"", b"SIMPLE  = T", (tmp_path / "a").read_bytes()[:-5000]):
        (tmp_path / "b").write_bytes(content)
        with pytest.raises(ValueError, match=r"no arrays|not complete"):
            read_arrays(tmp_path / "b")
