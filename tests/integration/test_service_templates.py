"""The service with templates of archives: from every one of them, and when they fail.

The archives are played on loopback; what is theirs is in `tests.integration.sky_archive`. Two
services serve all tests: one fetches only what an exposure asks for, the other ahead as well.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits
from astropy.table import Table
from confluent_kafka import Message

from tests.archive.server import ArchiveServer
from tests.archive.vizier import VizierPlay
from tests.integration.night import Night, Observed
from tests.integration.observed_field import (
    FIRST_NIGHT,
    PIXELS,
    SCALE,
    TRANSIENTS,
    ObservedField,
)
from tests.integration.sky_archive import (
    HIPS2FITS,
    HIPS_EPOCHS,
    LEGACYSURVEY,
    PANSTARRS,
    PANSTARRS_LIST,
    TREE,
    SkyArchive,
    sky_archive,
)
from tests.kafka.topics import TopicMaker
from tests.service_process import PATIENCE, ServiceProcess, Topics, send_events

pytestmark = pytest.mark.kafka

StartNight = Callable[..., Night]
HALF_AN_EXPOSURE = 15 / 86400
ARCHIVES = {TREE, HIPS2FITS, PANSTARRS, PANSTARRS_LIST, LEGACYSURVEY}


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SkyArchive]:
    with pytest.MonkeyPatch.context() as patch, sky_archive(tmp_path_factory.mktemp("sky")) as made:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield made


@pytest.fixture(autouse=True)
def mended(sky: SkyArchive) -> Iterator[None]:
    """Let what a test breaks be whole for the next."""
    sky.server.forget()
    yield
    sky.server.mend()


@pytest.fixture(scope="module")
def start_night(
    kafka_bootstrap: str,
    make_topic: TopicMaker,
    read_topic: Callable[..., list[Message]],
    sky: SkyArchive,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[StartNight]:
    """``start_night(pointings=False, **templates) -> Night``."""
    started: list[ServiceProcess] = []

    def start(*, pointings: bool, **templates: Any) -> Night:
        folder = tmp_path_factory.mktemp("night")
        exposures = folder / "exposures"
        exposures.mkdir()
        topics = Topics(
            make_topic(), make_topic(), make_topic(), make_topic(),
            make_topic() if pointings else None,
        )  # fmt: skip
        service = ServiceProcess(
            folder=folder,
            bootstrap=kafka_bootstrap,
            topics=topics,
            roots=[exposures],
            templates=sky.templates,
            settings={"templates": sky.settings | templates},
        )
        started.append(service)
        return Night(service.start(), exposures, read_topic)

    yield start
    for service in started:
        service.kill()


@pytest.fixture(scope="module")
def night(start_night: StartNight) -> Night:
    """A service that fetches what an exposure asks for, and nothing else."""
    return start_night(pointings=False, prefetch=False)


@pytest.fixture(scope="module")
def night_ahead(start_night: StartNight) -> Night:
    """A service that fetches ahead, and keeps what was projected."""
    return start_night(pointings=True, keep_projected=True)


def assert_found(observed: Observed, field: ObservedField, provider: str) -> None:
    """The transients came out, each once, and nothing else that is significant."""
    status = observed.status
    assert (status["outcome"], status["reason"]) == ("published", "")
    assert status["template"]["provider"] == provider
    assert sorted(observed.nearest(field.transients)) == list(range(len(TRANSIENTS)))


def assert_dated(observed: Observed, epochs: tuple[float, float] | None) -> None:
    """Status and packets say when the frames of the template were taken."""
    said = observed.status["template"]
    expected = (None, None) if epochs is None else pytest.approx(epochs, abs=1e-6)
    assert (said["mjd_first"], said["mjd_last"]) == expected
    for alert in observed.alerts:
        candidate = alert["candidate"]
        days = (0.0, 0.0) if epochs is None else [mjd + 2400000.5 for mjd in epochs]
        in_packet = candidate["jdstartref"], candidate["jdendref"]
        assert in_packet == pytest.approx(days, rel=1e-12)


def asked(sky: SkyArchive) -> set[str]:
    """Whom requests were sent to."""
    return {archive for archive in ARCHIVES if sky.server.count(archive)}


@pytest.mark.parametrize(
    ("field", "band", "provider", "archives", "epochs"),
    [
        ("north", "g", "hips", {TREE}, HIPS_EPOCHS),
        ("north", "i", "hips", {HIPS2FITS}, None),
        ("north", "r", "panstarrs", {PANSTARRS, PANSTARRS_LIST}, (55090.0, 56522.0)),
        ("south", "r", "legacysurvey", {LEGACYSURVEY}, (56885.0, 58167.5)),
        ("south", "y", "directory", set(), (FIRST_NIGHT - 300 + HALF_AN_EXPOSURE,) * 2),
    ],
)
def test_every_provider_in_turn_turns_exposures_into_alerts(
    night: Night,
    sky: SkyArchive,
    field: str,
    band: str,
    provider: str,
    archives: set[str],
    epochs: tuple[float, float] | None,
) -> None:
    """Nobody is asked who cannot have the field or the band, and nobody after the one who has."""
    of_field = getattr(sky, field)
    found, stored = (
        night.counted("requests", provider=provider, result="found"),
        night.counted("cache_events", event="stored"),
    )
    observed = night.observe(of_field, band)
    assert_found(observed, of_field, provider)
    assert_dated(observed, epochs)
    assert asked(sky) == archives
    assert night.counted("requests", provider=provider, result="found") == found + 1
    assert (night.counted("cache_events", event="stored") > stored) == bool(archives)


def test_stars_that_the_template_has_saturated_raise_no_alert(
    start_night: StartNight, sky: SkyArchive
) -> None:
    """By a catalogue in which a bright star stands where one of the transients is."""
    field = sky.gap
    ra, dec = field.transients[0]
    table = Table({"RAJ2000": [ra, ra], "DEJ2000": [dec, dec + 0.01], "gmag": [11.0, 19.0]})
    table["e_gmag"] = 0.01
    vizier = VizierPlay({"II/349/ps1": table})
    night = start_night(
        pointings=False,
        prefetch=False,
        providers=["directory"],
        vizier_url=vizier.at(sky.server),
        star_mask={"catalogue": "ps1", "brighter_than": 14.0, "dilate": 31},
    )
    for exposure in range(2):
        observed = night.observe(field, "g")
        assert observed.status["outcome"] == "published"
        assert sorted(observed.nearest(field.transients)) == list(range(1, len(TRANSIENTS)))
        assert len(vizier.queries) == 1
        assert night.counted("cache_events", kind="catalogue", event="hit") == exposure


def test_what_one_provider_leaves_bare_comes_from_the_next(
    start_night: StartNight, sky: SkyArchive, tmp_path: Path
) -> None:
    """Two of the transients lie on the folder's part, the other two on that of Pan-STARRS."""
    sky.north.write_template(tmp_path, "z")
    path = tmp_path / "north-z.fits"
    data, header = fits.getdata(path, header=True)
    fits.writeto(path, data[:250], header, overwrite=True)
    night = start_night(
        pointings=False,
        prefetch=False,
        providers=["directory", "panstarrs"],
        path=str(tmp_path),
        fill=True,
    )
    observed = night.observe(sky.north, "z")
    assert_found(observed, sky.north, "directory")
    template = observed.status["template"]
    assert template["overlap"] == pytest.approx(1.0, abs=0.01)
    assert template["template_id"].startswith("north-z.fits + z skycell.1226")
    assert any("are filled from panstarrs" in note for note in observed.status["notes"])


def test_second_exposure_of_a_field_asks_for_nothing(night: Night, sky: SkyArchive) -> None:
    """It points a few pixels away, so it is the tiles that are shared."""
    night.observe(sky.north, "g")
    hits = night.counted("cache_events", kind="hips-tile", event="hit")
    misses = night.counted("cache_events", kind="hips-tile", event="miss")
    sky.server.forget()
    assert_found(night.observe(sky.north, "g"), sky.north, "hips")
    assert sky.server.requests == []
    assert night.counted("cache_events", kind="hips-tile", event="hit") >= hits + 9
    assert night.counted("cache_events", kind="hips-tile", event="miss") == misses


def test_chain_goes_on_when_the_first_ones_fail(night: Night, sky: SkyArchive) -> None:
    sky.server.fault(TREE, status=503)
    sky.server.fault(PANSTARRS_LIST, status=404)
    sky.server.fault(LEGACYSURVEY, html=True)
    before = {
        (provider, result): night.counted("requests", provider=provider, result=result)
        for provider, result in WHEN_ALL_FAIL
    }
    assert_found(night.observe(sky.gap, "g"), sky.gap, "directory")
    assert asked(sky) == {TREE, PANSTARRS_LIST, LEGACYSURVEY}
    for (provider, result), number in before.items():
        assert night.counted("requests", provider=provider, result=result) == number + 1
    (line,) = [r for r in night.service.log_records if "HTTP 503" in r["message"]][-1:]
    assert line["message"].startswith("the template is of directory; hips: ")
    assert "web page" in line["message"]
    assert line["level"] == "WARNING"


WHEN_ALL_FAIL = [
    ("hips", "unavailable"),
    ("panstarrs", "refused"),
    ("legacysurvey", "unavailable"),
    ("directory", "found"),
]


def test_field_outside_every_survey_ends_with_what_each_said(night: Night, sky: SkyArchive) -> None:
    observed = night.observe(sky.nowhere, "g")
    status = observed.status
    assert (status["outcome"], status["attempts"]) == ("no_template", 1)
    assert (status["template"], observed.alerts) == (None, [])
    reason = status["reason"]
    assert reason.startswith("no template for RA 200.0")
    for said in (
        "hips: ", "tiles of order 11 around RA 200",
        "panstarrs: ", "south of -31 deg Pan-STARRS has nothing",
        "legacysurvey: ", "missing: ",
        "directory: ", "2 images looked at", "elsewhere on the sky",
    ):  # fmt: skip
        assert said in reason
    assert "\n" not in reason
    # The holes are remembered: the next exposure of the field asks for none of them.
    sky.server.forget()
    again = night.observe(sky.nowhere, "g", repeat=True)
    assert again.status["outcome"] == "no_template"
    assert sky.server.requests == []


def test_archive_that_is_down_for_a_moment_delivers_later(night: Night, sky: SkyArchive) -> None:
    """One file is busy once, and asked for again; another for longer, and the exposure waits."""
    short, long = (brick.name for brick in sky.south_bricks[:2])
    sky.server.fault(f"{short}-image-z", status=503, retry_after="0", times=1)
    sky.server.fault(f"{long}-image-z", status=503, retry_after="0", times=2)
    observed = night.observe(sky.south, "z")
    assert_found(observed, sky.south, "legacysurvey")
    assert observed.status["attempts"] == 2
    assert sky.server.count(f"{short}-image-z") == 2
    assert sky.server.count(f"{long}-image-z") == 3


@pytest.mark.parametrize(
    ("field", "band", "path", "provider"),
    [("south", "g", "-image-g", "legacysurvey"), ("gap", "i", HIPS2FITS, "hips")],
)
def test_redirection_to_a_host_that_is_not_allowed_is_refused(
    night: Night, sky: SkyArchive, field: str, band: str, path: str, provider: str
) -> None:
    refused = night.counted("requests", provider=provider, result="refused")
    with ArchiveServer() as elsewhere:
        sky.server.fault(path, redirect=f"{elsewhere.url}/image.fits")
        status = night.observe(getattr(sky, field), band).status
        assert sky.server.count(path) > 0
        assert elsewhere.requests == []
    assert (status["outcome"], status["attempts"]) == ("no_template", 1)
    assert f"{elsewhere.host} is not among those that the settings allow" in status["reason"]
    assert night.counted("requests", provider=provider, result="refused") == refused + 1


def test_what_was_refused_is_not_remembered(night: Night, sky: SkyArchive) -> None:
    """It was the archive's fault, and may be mended."""
    first = sky.south_bricks[0].name
    fault = sky.server.fault(f"{first}-image-g", redirect="file:///etc/passwd", times=1)
    night.observe(sky.south, "g")
    assert fault.times == 0
    assert_found(night.observe(sky.south, "g"), sky.south, "legacysurvey")


def test_pointings_are_fetched_for_before_there_is_an_exposure(
    night_ahead: Night, sky: SkyArchive
) -> None:
    """One says where by numbers, the other by the cards of a WCS; a third says nonsense."""
    night, field = night_ahead, sky.north
    size = {"width": PIXELS, "height": PIXELS}
    cards = {k: v for k, v in field.wcs(angle=0.2).to_header().items() if k != "DATE-REF"}
    pointings = [
        {"pointing_id": "bad", "band": "r", **size},
        {"pointing_id": "numbers", "band": "r", **size}
        | {"ra": field.ra, "dec": field.dec, "pixel_scale": SCALE},
        {"pointing_id": "cards", "band": "g", **size, "wcs": cards},
    ]
    announce(night, pointings, lambda: night.counted("prefetches", result="fetched") == 2)
    assert night.counted("prefetches", source="pointing", result="fetched") == 2
    assert night.counted("prefetches", source="pointing", result="refused") >= 1
    assert asked(sky) == {TREE, PANSTARRS, PANSTARRS_LIST}
    assert night.counted("requests", provider="panstarrs", result="found") == 1
    sky.server.forget()
    assert_found(night.observe(field, "r", repeat=True), field, "panstarrs")
    assert_found(night.observe(field, "g"), field, "hips")  # some pixels beside the pointing
    assert sky.server.requests == []


def test_fetching_ahead_gives_way_to_the_workers(night_ahead: Night) -> None:
    worker, prefetcher = sorted(
        os.getpriority(os.PRIO_PROCESS, pid) for pid in night_ahead.service.workers
    )
    assert prefetcher == min(worker + 10, 19)


def announce(night: Night, pointings: list[dict[str, Any]], done: Callable[[], bool]) -> None:
    """Send pointings until they are heard: what was said before anybody listened is history."""
    topic = night.service.topics.pointings
    assert topic is not None
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, night.service.log
        send_events(night.service.bootstrap, topic, pointings)
        time.sleep(0.5)


def test_templates_of_waiting_exposures_are_fetched_once(
    night_ahead: Night, sky: SkyArchive
) -> None:
    """The one worker has the first; the others are fetched for, and nothing is fetched twice."""
    night, field = night_ahead, sky.south
    ahead = night.counted("prefetches", source="exposure", result="fetched")
    events = [field.expose(night.folder, band) for band in "rgz"]
    for observed in night.observe_all(events):
        assert_found(observed, field, "legacysurvey")
    requests = Counter(request.path for request in sky.server.requests)
    planes = {path: number for path, number in requests.items() if "-image-" in path}
    planes |= {path: number for path, number in requests.items() if "-invvar-" in path}
    assert len(planes) == 6 * len(sky.south_bricks)
    assert set(planes.values()) == {1}
    night.service.until(
        lambda: night.counted("prefetches", source="exposure", result="fetched") >= ahead + 2,
        "fetched ahead",
    )


def test_projected_template_of_a_repeated_pointing_is_kept(
    night_ahead: Night, sky: SkyArchive
) -> None:
    night, field = night_ahead, sky.south
    for hits in (0, 1):
        assert_found(night.observe(field, "y", repeat=True), field, "directory")
        assert night.counted("cache_events", kind="projected", event="hit") == hits
