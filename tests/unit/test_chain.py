"""Who is asked for a template, in which order, and what is said when nobody has one."""

import numpy as np
import pytest

from core.deadline import Deadline
from core.errors import (
    ArchiveUnavailable,
    ExposureError,
    ForbiddenAddress,
    InputUnavailable,
    NoTemplate,
    NotInArchive,
    UnusableInput,
)
from core.exposure import TemplateFacts
from core.image import Image
from core.templates.chain import ChainTemplates, Link
from core.templates.template import Template, TemplateRequest
from tests.unit.test_templates_directory import SHAPE, tan


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Provider:
    """Answers as it is told, after some time, and remembers what it was asked."""

    def __init__(self, name, answer=None, *, clock=None, takes=0.0, overlap=1.0):
        self.name = name
        self.answer = answer
        self.requests = []
        self._clock, self._takes, self._overlap = clock, takes, overlap

    def find(self, request):
        self.requests.append(request)
        if self._clock is not None:
            self._clock.now += self._takes
        if self.answer is not None:
            raise self.answer
        image = Image(np.ones((3, 3), np.float32), np.zeros((3, 3), np.uint16))
        facts = TemplateFacts(self.name, f"{self.name}.fits", overlap=self._overlap)
        return Template(image, facts, identity=(self.name,))


class Saying(Provider):
    """Can say what it would deliver."""

    def identify(self, request):
        if self.answer is not None:
            raise self.answer
        return (self.name,)


class Log:
    def __init__(self):
        self.said = []

    def requested(self, provider, result):
        self.said.append((provider, result))


def request(**values):
    return TemplateRequest(tan(), SHAPE, "r", **values)


def chain(*providers, observer=None):
    return ChainTemplates([Link(provider) for provider in providers], observer=observer)


def test_the_first_that_has_one_delivers(caplog):
    log = Log()
    last = Provider("last")
    providers = [
        Provider("none", NoTemplate("south of its limit")),
        Provider("hole", NotInArchive("no such cell")),
        Provider("away", ArchiveUnavailable("503")),
        Provider("elsewhere", ForbiddenAddress("evil.example is not allowed")),
        Provider("broken", UnusableInput("not FITS")),
        Provider("good"),
        last,
    ]
    template = chain(*providers, observer=log).find(request())
    assert template.facts.provider == "good"
    assert [len(p.requests) for p in providers] == [1, 1, 1, 1, 1, 1, 0]
    assert log.said == [
        ("none", "none"), ("hole", "none"), ("away", "unavailable"), ("elsewhere", "refused"),
        ("broken", "error"), ("good", "found"),
    ]  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == [
        "the template is of good; away: 503; elsewhere: evil.example is not allowed; "
        "broken: not FITS"
    ]


def test_nobody_has_one_and_all_said_so():
    with pytest.raises(NoTemplate) as raised:
        chain(
            Provider("north", NoTemplate("Dec -40 is south of -31")),
            Provider("south", NotInArchive("no brick there")),
            Provider("broken", UnusableInput("not FITS")),
        ).find(request())
    assert not raised.value.retriable
    assert str(raised.value) == (
        "no template for RA 10.0000 Dec +20.0000, band r; north: Dec -40 is south of -31; "
        "south: no brick there; broken: not FITS"
    )


def test_somebody_who_could_not_be_asked_may_have_one():
    providers = [Provider("away", ArchiveUnavailable("no answer")), Provider("n", NoTemplate("no"))]
    for each in (providers, providers[::-1]):
        with pytest.raises(InputUnavailable, match="away: no answer") as raised:
            chain(*each).find(request())
        assert "n: no" in str(raised.value)
        assert raised.value.retriable


def test_each_has_its_time_and_all_have_that_of_the_request():
    clock = Clock()
    slow = Provider("slow", ArchiveUnavailable("too slow"), clock=clock, takes=7)
    slower = Provider("slower", ArchiveUnavailable("too slow"), clock=clock, takes=4)
    never = Provider("never")
    links = [Link(slow, seconds=5), Link(slower, seconds=60), Link(never)]
    with pytest.raises(InputUnavailable, match="never: not asked, there was no time left"):
        ChainTemplates(links).find(request(deadline=Deadline(10, clock)))
    clock.now -= 11  # what they were given, at the time when they were asked
    assert slow.requests[0].deadline.remaining() == pytest.approx(5)
    clock.now += 7
    assert slower.requests[0].deadline.remaining() == pytest.approx(3)
    assert never.requests == []


def test_bands_are_translated_for_each():
    ztf, other = Provider("ztf", NoTemplate("no")), Provider("other", NoTemplate("no"))
    links = [Link(ztf, bands={"clear": "zr", "R": "zr", "ZTF_g": "zg"}), Link(other)]
    templates = ChainTemplates(links)
    for band in ("Clear", "bessell r", "g", "i", None):
        with pytest.raises(NoTemplate, match="no template"):
            templates.find(TemplateRequest(tan(), SHAPE, band))
    assert [r.band for r in ztf.requests] == ["zr", "zr", "zg", "i", None]
    assert [r.band for r in other.requests] == ["Clear", "bessell r", "g", "i", None]


def test_part_of_the_exposure_is_enough_above_a_fraction():
    part, whole = Provider("part", overlap=0.4), Provider("whole")
    assert chain(part, whole).find(request(min_overlap=0.3)).facts.provider == "part"
    assert chain(part, whole).find(request(min_overlap=0.5)).facts.provider == "whole"
    with pytest.raises(NoTemplate, match=r"part.fits covers only 40 % of the exposure, 50 % are"):
        chain(part).find(request(min_overlap=0.5))


def test_it_tells_which_template_it_expects():
    none, away = Saying("none", NoTemplate("no")), Saying("away", ArchiveUnavailable("503"))
    odd = Saying("odd", UnusableInput("no FITS file"))
    good, last = Saying("good"), Saying("last")
    assert chain(none, away, odd, good, last).identify(request()) == ("good",)
    assert chain(none, Provider("cannot say"), good).identify(request()) is None
    assert chain(none).identify(request()) is None
    assert not any(p.requests for p in (none, away, good, last))


def test_a_defect_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        chain(Provider("defect", ZeroDivisionError()), Provider("good")).find(request())
    with pytest.raises(ValueError, match="at least one"):
        ChainTemplates([])


def test_without_a_wcs_it_says_so():
    with pytest.raises(ExposureError, match="no template for any band; only: no"):
        chain(Provider("only", NoTemplate("no"))).find(TemplateRequest(None, SHAPE))
