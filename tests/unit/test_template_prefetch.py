"""Warming the cache from a list of fields: the time of each, and what ends it early."""

from __future__ import annotations

import json
import time

import pytest

from core.errors import NoTemplate
from core.templates import Template, TemplateRequest
from service.pointings import Pointing, decode
from service.template_prefetch import PrefetchOptions, prefetch
from service.template_tally import TemplateTally

FIELDS = 20


class SlowTemplates:
    """Has nothing and takes its time to say so; the first request may meet something worse."""

    name = "slow"

    def __init__(self, first: BaseException | None = None) -> None:
        self._first = first
        self.asked: list[TemplateRequest] = []

    def find(self, request: TemplateRequest) -> Template:
        self.asked.append(request)
        if self._first is not None and len(self.asked) == 1:
            raise self._first
        time.sleep(0.05)
        raise NoTemplate("nothing there")


def fields() -> list[Pointing]:
    plain = {"band": "r", "width": 60, "height": 40, "ra": 150.0, "dec": 2.0, "pixel_scale": 1.0}
    return [decode(json.dumps({**plain, "pointing_id": f"f{n}"}).encode()) for n in range(FIELDS)]


@pytest.mark.parametrize("fault", [ZeroDivisionError(), KeyboardInterrupt()])
def test_what_ends_it_leaves_the_rest_unasked(fault: BaseException) -> None:
    templates = SlowTemplates(fault)
    with pytest.raises(type(fault)):
        prefetch(fields(), templates, TemplateTally(), PrefetchOptions(jobs=1))
    assert len(templates.asked) < FIELDS / 2


def test_each_field_has_its_time_and_its_overlap(capsys: pytest.CaptureFixture[str]) -> None:
    templates = SlowTemplates()
    options = PrefetchOptions(jobs=4, min_overlap=0.7, deadline_seconds=90)
    assert prefetch(fields(), templates, TemplateTally(), options) == 0
    assert f"0 of {FIELDS} fields have a template, {FIELDS} have none" in capsys.readouterr().out
    assert len(templates.asked) == FIELDS
    for request in templates.asked:
        assert request.min_overlap == 0.7
        assert request.deadline is not None
        assert 30 < request.deadline.remaining() <= 90
