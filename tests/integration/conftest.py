"""What the tests of the service share: a small survey on disk, and services on the broker."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.simulation.survey import SimulatedSurvey, SurveySettings, simulate_survey
from tests.kafka.secure_broker import SecureBroker
from tests.kafka.topics import TopicMaker
from tests.service_process import ServiceProcess, Topics

#: Small, and still subtracted well enough to be published.
SMALL = SurveySettings(
    n_exposures=3,
    shape=(320, 320),
    star_density=3000.0,
    n_transients=5,
    n_variables=0,
    bad_columns=0,
    fwhm_range=(3.0, 3.3),
    dither=3.0,
    rotation=0.0,
)


@pytest.fixture(scope="session")
def small_survey(tmp_path_factory: pytest.TempPathFactory) -> SimulatedSurvey:
    """Three exposures of 320 pixels and their template."""
    return simulate_survey(SMALL, tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="session")
def secure_broker(
    kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecureBroker]:
    """A broker with TLS, SASL and ACLs."""
    with SecureBroker(tmp_path_factory.mktemp("secure")) as broker:
        yield broker


@pytest.fixture
def topics(make_topic: TopicMaker) -> Topics:
    """New topics: the exposures have two partitions, what comes out has one."""
    return Topics(make_topic(partitions=2), make_topic(), make_topic(), make_topic())


@pytest.fixture
def make_service(
    kafka_bootstrap: str, topics: Topics, small_survey: SimulatedSurvey, tmp_path: Path
) -> Iterator[Callable[..., ServiceProcess]]:
    """``make_service(**tables) -> ServiceProcess``, not yet started; all are killed in the end."""
    made: list[ServiceProcess] = []

    def make(module: str = "service.cli", arguments: tuple[str, ...] = (), **tables: Any):  # type: ignore[no-untyped-def]
        folder = tmp_path / f"service-{len(made)}"
        folder.mkdir()
        root = small_survey.template_dir.parent
        service = ServiceProcess(
            folder=folder,
            bootstrap=kafka_bootstrap,
            topics=topics,
            roots=[root, tmp_path],
            templates=small_survey.template_dir,
            settings=tables,
            module=module,
            arguments=arguments,
        )
        made.append(service)
        return service

    yield make
    for service in made:
        service.kill()
