"""What all tests share: one real Kafka broker for the session, topics on it, and what they hold."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from confluent_kafka import Message

from tests.kafka import discovery
from tests.kafka.errors import BrokerFailed, BrokerUnavailable
from tests.kafka.jars import fetch_jars, find_java
from tests.kafka.local_broker import LocalBroker
from tests.kafka.topics import TopicMaker
from tests.kafka.topics import read_topic as read_topic_at

NO_BROKER = pytest.StashKey[str]()
SKIPPED = "no Kafka broker (see NO KAFKA BROKER below)"
NEEDS_KAFKA = {"kafka_bootstrap", "kafka_jars"}


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the marker ``kafka`` and the need for a broker the same thing."""
    for item in items:
        fixtures = getattr(item, "fixturenames", [])
        if not NEEDS_KAFKA.isdisjoint(fixtures):
            item.add_marker("kafka")
        elif item.get_closest_marker("kafka"):
            fixtures.insert(0, "kafka_bootstrap")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Give the tests that found no broker one place, so that the summary lists them as one."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and SKIPPED in report.longrepr[2]:
        report.longrepr = (__file__, 0, report.longrepr[2])
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the reporter's own: after all it says
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None, None, None]:
    """Say in one line that the tests which need a broker did not run."""
    yield
    reason = config.stash.get(NO_BROKER, None)
    if reason:
        skipped = terminalreporter.stats.get("skipped", [])
        number = sum(SKIPPED in str(report.longrepr) for report in skipped)
        terminalreporter.write_line(
            f"NO KAFKA BROKER: {number} tests skipped ({reason}). "
            f"To get one: {discovery.HOW_TO_GET_ONE}.",
            red=True,
            bold=True,
        )


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear from a process of tests (pytest-xdist) why it found no broker."""
    reason = getattr(node, "workeroutput", {}).get("no_broker")
    if reason:
        node.config.stash[NO_BROKER] = reason


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that started this one (pytest-xdist) why there was no broker."""
    told = getattr(session.config, "workeroutput", None)
    if told is not None:
        told["no_broker"] = session.config.stash.get(NO_BROKER, None)


def _go_without(config: pytest.Config, error: BrokerUnavailable) -> NoReturn:
    """Fail where a broker is required, else skip and remember why."""
    if discovery.broker_is_required():
        raise pytest.fail.Exception(
            f"{discovery.REQUIRED} is set and there is no Kafka broker ({error}). "
            f"To get one: {discovery.HOW_TO_GET_ONE}.",
            pytrace=False,
        ) from None
    config.stash[NO_BROKER] = str(error)
    pytest.skip(SKIPPED)


@pytest.fixture(scope="session")
def kafka_bootstrap(pytestconfig: pytest.Config) -> Iterator[str]:
    """Bootstrap address of a real broker, one for the whole session (see `discovery`)."""
    broker = discovery.find_broker()
    try:
        bootstrap = broker.__enter__()
    except BrokerUnavailable as error:
        _go_without(pytestconfig, error)
    except BrokerFailed as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    try:
        yield bootstrap
    finally:
        broker.__exit__(None, None, None)


@pytest.fixture(scope="session")
def kafka_jars(pytestconfig: pytest.Config) -> Path:
    """Folder with the jars of Apache Kafka, for tests that start brokers of their own."""
    try:
        find_java()
        return fetch_jars()
    except BrokerUnavailable as error:
        _go_without(pytestconfig, error)


@pytest.fixture
def own_broker(kafka_jars: Path, tmp_path: Path) -> Iterator[LocalBroker]:
    """A broker of the test's own, to be stopped, killed and started again. It takes seconds."""
    with LocalBroker(tmp_path / "kafka") as broker:
        yield broker


@pytest.fixture(scope="session")
def make_topic(kafka_bootstrap: str) -> Iterator[TopicMaker]:
    """``make_topic(partitions=1) -> name``: a new topic, deleted when the session ends."""
    maker = TopicMaker(kafka_bootstrap)
    yield maker
    maker.delete_all()


@pytest.fixture(scope="session")
def read_topic(kafka_bootstrap: str) -> Callable[..., list[Message]]:
    """``read_topic(topic, expected, timeout=30) -> list[Message]``: what is committed there."""

    def read(topic: str, expected: int, timeout: float = 30.0) -> list[Message]:
        return read_topic_at(kafka_bootstrap, topic, expected, timeout)

    return read
