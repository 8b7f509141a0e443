"""When the frames of a template were taken, as each of its sources states it."""

from __future__ import annotations

from pathlib import Path

import pytest
from astropy.io import fits

from core.templates.directory import DirectoryTemplates
from core.templates.epochs import Epochs, as_facts
from core.templates.hips.properties import HipsProperties
from core.templates.panstarrs import stack_epochs
from tests.archive.hips import write_hips
from tests.archive.server import ArchiveServer
from tests.shared_data import shared_data
from tests.unit import made_hips, test_legacysurvey, test_panstarrs
from tests.unit.test_combining import half
from tests.unit.test_templates_directory import put, request

HALF_MINUTE = 30 / 86400


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"MJD-OBS": 58000.25, "EXPTIME": 60.0}, (58000.25 + HALF_MINUTE,) * 2),
        ({"MJD-OBS": 58000.25, "MJD-END": 58001.5, "EXPTIME": 60.0}, (58000.25, 58001.5)),
        ({"MJDSTART": "58000.25", "MJDEND": "58000.5", "MJD-OBS": 58000.2}, (58000.25, 58000.5)),
        ({"MJD-BEG": 58002.0, "MJD-END": 58001.5, "MJD-OBS": 58000.0}, (58000.0, 58001.5)),
        (
            {"DATEOBS1": "2017-09-04T06:00:00", "DATEOBS2": "2018-09-04T12:00:00.000"},
            (58000.25, 58365.5),
        ),
        ({"DATE-BEG": "2017-09-04T06:00:00"}, (58000.25, 58000.25)),
        ({"DATEOBS1": "2017-09-04T06:00:00"}, None),
        ({"MJD-OBS": 0.0, "MJD-END": 58001.5}, None),
        ({"DATE": "2017-09-04T06:00:00"}, None),
    ],
)
def test_headers_state_an_interval_or_one_time(
    cards: dict[str, object], expected: tuple[float, float] | None
) -> None:
    found = Epochs.of_headers((fits.Header(cards),))
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.first, found.last) == pytest.approx(expected, abs=1e-9)


def test_the_primary_header_is_read_too() -> None:
    headers = fits.Header({"MJD-BEG": 58000.0}), fits.Header({"MJD-END": 58003.0})
    assert Epochs.of_headers(headers) == Epochs(58000.0, 58003.0)


def test_parts_span_what_is_known_of_them() -> None:
    parts = [None, Epochs(58001.0, 58002.0), Epochs(57000.0, 57001.0), None]
    assert Epochs.spanning(parts) == Epochs(57000.0, 58002.0)
    assert Epochs.spanning([None]) is None
    assert as_facts(None) == {"mjd_first": None, "mjd_last": None}


def test_nights_of_a_real_stack() -> None:
    """Thirty-two exposures; the header's own MJD-OBS is 55961.07, their mean."""
    header = fits.getheader(shared_data("panstarrs_cutouts") / "frb190608_panstarrs_rband.fits")
    assert stack_epochs(header) == Epochs(55090.0, 56523.0)
    for keyword in [keyword for keyword in header if keyword.startswith("INP_")]:
        del header[keyword]
    mean = stack_epochs(header)
    assert mean is not None
    assert mean.first == mean.last == pytest.approx(55961.0717, abs=0.02)


def test_pan_starrs_spans_the_exposures_of_all_cells() -> None:
    with ArchiveServer() as server:
        test_panstarrs.play(server)
        facts = test_panstarrs.provider(server).find(test_panstarrs.exposure()).facts
    assert (facts.mjd_first, facts.mjd_last) == (55090.0, 56522.0)


def test_binned_cells_keep_their_epochs(tmp_path: Path) -> None:
    with ArchiveServer() as server:
        test_panstarrs.play(server, step=60)
        cache = test_panstarrs.TemplateCache(tmp_path)
        wide = test_panstarrs.exposure(shape=(90, 90), scale=1.0)
        for _ in ("made", "read"):
            template = test_panstarrs.provider(server, cache).find(wide)
            assert (template.facts.mjd_first, template.facts.mjd_last) == (55090.0, 56522.0)
            assert template.image.facts.mjd_mid is None


def test_legacy_surveys_state_the_first_and_the_last_exposure() -> None:
    """Each brick says its own first day of August 2014, of which the 1st is MJD 56870."""
    where = test_legacysurvey.exposure(112.5, 22.12)
    with ArchiveServer() as server:
        archive = test_legacysurvey.play(server, where)
        template = test_legacysurvey.provider(server).find(where)
    bricks = [brick for each in archive.bricks.values() for brick in each]
    days = {int(b.name[:4]) % 28 + 1 for b in bricks if b.name in template.sources}
    assert template.facts.mjd_first == 56869 + min(days)
    assert template.facts.mjd_last == 58167.5


def test_a_hips_states_the_time_that_its_images_span(tmp_path: Path) -> None:
    where, sky = made_hips.exposure(), made_hips.sky_at()
    for stated, expected in (
        ({"t_min": 51488, "t_max": 51955}, (51488.0, 51955.0)),
        ({"t_min": 51488}, (None, None)),
        ({"t_min": 51955, "t_max": 51488}, (None, None)),
    ):
        write_hips(
            tmp_path, sky, where.wcs, made_hips.SHAPE, order=made_hips.ORDER,
            width=made_hips.WIDTH, **stated,
        )  # fmt: skip
        facts = made_hips.local(tmp_path).find(where).facts
        assert (facts.mjd_first, facts.mjd_last) == expected


def test_real_properties() -> None:
    path = shared_data("hips_tiles/2MASS6XH") / "properties"
    found = HipsProperties.parse(path.read_text(encoding="utf-8"), str(path)).epochs
    assert found == Epochs(51488.0, 51955.0)


def test_files_that_are_combined_span_their_epochs_together(tmp_path: Path) -> None:
    cards = {"FILTER": "r", "MAGZP": 25.0}
    put(tmp_path / "a.fits", half(-0.45), seed=1, **cards, **{"MJD-OBS": 58000.5})
    put(
        tmp_path / "b.fits", half(0.45), seed=2, **cards,
        **{"MJD-BEG": 57000.0, "MJD-END": 57100.0},
    )  # fmt: skip
    facts = DirectoryTemplates(tmp_path).find(request()).facts
    assert facts.template_id == "a.fits + b.fits"
    assert (facts.mjd_first, facts.mjd_last) == (57000.0, 58000.5)
