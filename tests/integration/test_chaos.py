"""Services, workers and a broker that die while events are worked on; `make chaos` is the long run.

A test that sees nothing would be green as well: two services with known faults must turn it red.
"""

from pathlib import Path

import pytest

from tests.chaos.disturbances import Disturbance
from tests.chaos.rounds import Plan, run_round
from tests.kafka.local_broker import LocalBroker
from tests.trapped_producer import AFTER_COMMIT, BEFORE_TRANSACTION

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("seed", [2, 3])
def test_each_event_once_whatever_dies(own_broker: LocalBroker, tmp_path: Path, seed: int) -> None:
    one = run_round(Plan.drawn(seed), own_broker, tmp_path / "services")
    assert one.faults == ()
    assert one.tally.statuses == 200
    assert len(one.happened) > 8, one.happened  # most of what was drawn has struck


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_service_that_does_not_check_whose_a_partition_is_is_found_out(
    own_broker: LocalBroker, tmp_path: Path, protocol: str
) -> None:
    frozen = Disturbance(2.0, "trap: freeze", 0, BEFORE_TRANSACTION)
    plan = Plan(0, 60, 10.0, protocol, (frozen,), fault="ownership")
    one = run_round(plan, own_broker, tmp_path / "services")
    assert one.happened == (str(frozen),)
    assert "a status twice" in " ".join(one.faults)


def test_a_service_that_commits_offsets_outside_its_transactions_is_found_out(
    own_broker: LocalBroker, tmp_path: Path
) -> None:
    killed = Disturbance(2.0, "trap: kill", 0, AFTER_COMMIT)
    plan = Plan(0, 60, 6.0, "classic", (killed,), fault="offsets")
    one = run_round(plan, own_broker, tmp_path / "services")
    assert one.happened == (str(killed),)
    assert "a status twice" in " ".join(one.faults)
