"""What the first provider leaves bare, from the next one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from astropy.io import fits

from core.celestial import from_icrs, to_icrs
from core.errors import ArchiveUnavailable, NoTemplate
from core.image import MaskBit
from core.templates.chain import ChainTemplates, Link
from core.templates.directory import DirectoryTemplates
from core.templates.filling import Filling, bare_request
from core.templates.template import Template, TemplateRequest
from tests.unit.test_combining import half
from tests.unit.test_templates_directory import SHAPE, put, request, tan

FACTOR = 10 ** (0.4 * (25.0 - 27.5))


class Recorded(DirectoryTemplates):
    """A folder that remembers what it was asked, and may be out of reach."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.requests: list[TemplateRequest] = []
        self.away = False

    def find(self, request: TemplateRequest) -> Template:
        self.requests.append(request)
        if self.away:
            raise ArchiveUnavailable("no answer")
        return super().find(request)


def first_and_next(folder: Path, *, shift: float = -0.45, **cards: Any) -> list[Recorded]:
    """Two folders: one that covers a part, and one that covers all of it at another zero point."""
    put(folder / "first" / "part.fits", half(shift), seed=1, FILTER="r", MAGZP=25.0, NCOMBINE=9)
    known = {"FILTER": "r", "MAGZP": 27.5, "MJD-OBS": 58000.0} | cards
    put(folder / "next" / "all.fits", tan(), seed=2, **{k: v for k, v in known.items() if v})
    return [Recorded(folder / "first"), Recorded(folder / "next")]


def chain(providers: list[Recorded], **options: Any) -> ChainTemplates:
    options.setdefault("filling", Filling())
    return ChainTemplates([Link(provider) for provider in providers], **options)


def on_exposure(template: Template, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Cut a plane of a template to the pixels of the exposure, on which they fall."""
    x, y = from_icrs(template.image.wcs, *to_icrs(tan(), [0.0], [0.0]))
    row, column = round(float(y[0])), round(float(x[0]))
    return plane[row : row + SHAPE[0], column : column + SHAPE[1]]


def test_the_rest_comes_from_the_next_at_the_zero_point_of_the_first(tmp_path: Path) -> None:
    template = chain(first_and_next(tmp_path)).find(request())
    assert template.facts.provider == "directory"
    assert template.facts.template_id == "part.fits + all.fits"
    assert (template.facts.overlap, template.facts.zero_point) == (1.0, 25.0)
    assert (template.facts.n_frames, template.facts.mjd_last) == (9, 58000.0)
    assert template.image.notes[-1].startswith("44 % of the exposure are filled from directory all")
    image = template.image
    data = on_exposure(template, image.data)
    ours = fits.getdata(tmp_path / "first" / "part.fits")
    theirs = fits.getdata(tmp_path / "next" / "all.fits") * FACTOR
    # The first one's pixels as they are; the others' at its level, and not interpolated.
    np.testing.assert_array_equal(data[:, 36:], ours[:, :44])
    shift = data[:, :36] - theirs[:, :36]
    assert np.median(shift) == pytest.approx(np.median(ours) - np.median(theirs), abs=0.5)
    assert float(np.ptp(shift)) < 1e-4
    variance = on_exposure(template, image.variance)
    assert np.median(variance[:, 36:]) == pytest.approx(25, rel=0.1)
    assert np.median(variance[:, :36]) == pytest.approx(25 * FACTOR**2, rel=0.1)
    assert (on_exposure(template, image.mask) == 0).all()
    assert np.isfinite(image.data).all()


def test_every_pixel_says_whose_it_is(tmp_path: Path) -> None:
    template = chain(first_and_next(tmp_path)).find(request())
    assert template.sources == ("part.fits", "all.fits")
    origin = on_exposure(template, template.origin)
    assert (origin[:, :36] == 1).all()
    assert (origin[:, 36:] == 0).all()
    nowhere = np.iinfo(template.origin.dtype).max
    assert ((template.origin == nowhere) == (template.image.mask == MaskBit.NO_DATA)).all()


def test_sources_of_the_first_keep_their_pixels(tmp_path: Path) -> None:
    put(tmp_path / "first" / "a.fits", half(-0.6), seed=1, FILTER="r", MAGZP=25.0)
    put(tmp_path / "first" / "b.fits", half(0.9), seed=2, FILTER="r", MAGZP=25.0)
    put(tmp_path / "next" / "all.fits", tan(), seed=4, FILTER="r", MAGZP=27.5)
    providers = [Recorded(tmp_path / "first"), Recorded(tmp_path / "next")]
    alone = chain(providers, filling=None).find(request())
    template = chain(providers).find(request())
    assert len(alone.sources) == 2
    before, after = on_exposure(alone, alone.origin), on_exposure(template, template.origin)
    known = before < len(alone.sources)
    assert known.mean() == pytest.approx(0.5)
    np.testing.assert_array_equal(after[known], before[known])
    assert (after[~known] == 2).all()


def test_only_what_is_bare_is_asked_for(tmp_path: Path) -> None:
    providers = first_and_next(tmp_path)
    chain(providers).find(request())
    (asked,) = providers[1].requests
    assert asked.shape[0] == SHAPE[0]
    assert 36 < asked.shape[1] < 46
    x, y = from_icrs(tan(), *to_icrs(asked.wcs, [0.0], [0.0]))
    assert (float(x[0]), float(y[0])) == pytest.approx((0, 0), abs=1e-6)


def test_without_the_option_the_rest_stays_masked(tmp_path: Path) -> None:
    providers = first_and_next(tmp_path)
    template = chain(providers, filling=None).find(request())
    assert template.facts.template_id == "part.fits"
    assert providers[1].requests == []


def test_a_template_that_covers_all_is_not_touched(tmp_path: Path) -> None:
    put(tmp_path / "first" / "whole.fits", tan(), FILTER="r", MAGZP=25.0)
    providers = first_and_next(tmp_path)
    assert chain(providers).find(request()).facts.template_id == "whole.fits"
    assert providers[1].requests == []
    assert bare_request(providers[0].find(request()), request()) is None


@pytest.mark.parametrize(
    ("cards", "said"),
    [
        ({"MAGZP": None}, "all.fits has no zero point"),
        ({"FILTER": None}, "is of band (unknown), not r"),
    ],
)
def test_what_does_not_fit_is_left_out_and_told(
    tmp_path: Path, cards: dict[str, None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    template = chain(first_and_next(tmp_path, **cards)).find(request())
    assert template.facts.template_id == "part.fits"
    assert said in caplog.text


def test_a_band_that_stands_for_another_does_not_fill_it(tmp_path: Path) -> None:
    """An unfiltered exposure may be given r; but one frame is not to be of two passbands."""
    providers = first_and_next(tmp_path)
    clear = replace(request(), band="clear")
    put(tmp_path / "first" / "part.fits", half(-0.45), FILTER="clear", MAGZP=25.0)
    links = [Link(providers[0]), Link(providers[1], bands={"clear": "r"})]
    template = ChainTemplates(links, filling=Filling()).find(clear)
    assert template.facts.template_id == "part.fits"
    assert providers[1].requests[0].band == "r"


def test_small_holes_are_not_filled(tmp_path: Path) -> None:
    """The burnt-out core of a star stays masked: its wings are of the first one's seeing."""
    providers = first_and_next(tmp_path)
    path = tmp_path / "first" / "part.fits"
    data, header = fits.getdata(path, header=True)
    data[20:35, 14:29] = np.nan
    fits.writeto(path, data, header, overwrite=True)
    template = chain(providers).find(request())
    mask = on_exposure(template, template.image.mask)
    assert (mask[20:35, 50:65] == MaskBit.NO_DATA).all()
    assert np.count_nonzero(mask) == 15 * 15


def test_one_that_is_away_leaves_it_bare_and_nothing_is_kept_of_that(tmp_path: Path) -> None:
    providers = first_and_next(tmp_path)
    providers[1].away = True
    templates = chain(providers)
    template = templates.find(request())
    assert template.facts.template_id == "part.fits"
    assert template.identity == ()
    providers[1].away = False
    assert templates.find(request()).identity != ()


def test_it_is_known_who_fills_a_pointing_that_is_repeated(tmp_path: Path) -> None:
    providers = first_and_next(tmp_path)
    templates = chain(providers)
    own = providers[0].identify(request())
    assert templates.identify(request()) == own
    template = templates.find(request())
    assert set(own) < set(template.identity)
    assert template.identity == templates.identify(request())
    # A new file that fills it makes another template of it; and so does one that goes.
    put(tmp_path / "next" / "all.fits", tan(), seed=7, FILTER="r", MAGZP=26.5)
    changed = templates.identify(request())
    assert changed not in (own, template.identity)
    assert templates.find(request()).identity == changed
    (tmp_path / "next" / "all.fits").unlink()
    assert templates.identify(request()) not in (own, template.identity, changed)


def test_one_that_has_nothing_is_part_of_the_identity(tmp_path: Path) -> None:
    """So that what was projected without it is not taken once it has something."""
    providers = first_and_next(tmp_path)
    (tmp_path / "next" / "all.fits").unlink()
    templates = chain(providers)
    bare = templates.find(request())
    assert bare.facts.template_id == "part.fits"
    assert bare.identity == templates.identify(request()) != providers[0].identify(request())
    put(tmp_path / "next" / "all.fits", tan(), seed=2, FILTER="r", MAGZP=27.5)
    assert templates.identify(request()) != bare.identity
    with pytest.raises(NoTemplate):
        chain(providers[1:]).find(replace(request(), band="z"))


def test_templates_that_would_be_too_large_stay_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    template = chain(first_and_next(tmp_path), filling=Filling(max_pixels=9000)).find(request())
    assert template.facts.template_id == "part.fits"
    assert "more than the limit of 9000" in caplog.text
