"""``make soak``: exposures at a steady pace for half an hour; a line a minute, and a verdict.

The verdict is bad (exit status 1) where an exposure has not exactly one status, or is not
published, or the memory of the service and its workers grows by more than a tenth once it is warm.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from core.simulation.survey import SurveySettings, simulate_survey
from tests.kafka.errors import BrokerFailed, BrokerUnavailable
from tests.kafka.local_broker import LocalBroker
from tests.kafka.topics import TopicMaker, read_topic
from tests.service_process import ServiceProcess, Topics, read_record, send_events
from tests.soak.family import Use, use_of

PARTITIONS = 4
GROWTH = 1.1
STALLED = 120.0  # seconds
WARM_UP = 0.2  # of the time
SMALL = SurveySettings(
    n_exposures=10, shape=(512, 512), star_density=3000.0, n_transients=5, n_variables=0,
    bad_columns=0, fwhm_range=(3.0, 3.3), dither=3.0, rotation=0.0,
)  # fmt: skip


class Soak:
    """One long run.

    Parameters
    ----------
    broker : LocalBroker
    folder : Path
        For the survey, the settings and the log.
    minutes, every : float
        How long, and the seconds between two exposures.
    """

    def __init__(self, broker: LocalBroker, folder: Path, minutes: float, every: float) -> None:
        make_topic = TopicMaker(broker.bootstrap)
        self._broker = broker
        self._topics = Topics(make_topic(PARTITIONS), make_topic(), make_topic(), make_topic())
        self._survey = simulate_survey(SMALL, folder / "survey")
        self._minutes = minutes
        self._every = every
        self._sent: list[str] = []
        self._uses: list[Use] = []
        self._service = ServiceProcess(
            folder=folder,
            bootstrap=broker.bootstrap,
            topics=self._topics,
            roots=[folder],
            templates=self._survey.template_dir,
            settings={"workers": {"count": 2, "threads": 1}, "log": {"level": "WARNING"}},
            patience=600,  # the first start of all compiles
        )

    def run(self) -> list[str]:
        """Run; return what is not as it must be."""
        self._service.start()
        try:
            self._keep_sending()
            self._wait_for_the_rest()
            faults = self._faults()
            status = self._service.stop()
            return [*faults, *([f"the service left with status {status}"] if status else [])]
        finally:
            self._service.kill()

    def _keep_sending(self) -> None:
        begin = time.monotonic()
        minute = 0
        while (now := time.monotonic() - begin) < 60 * self._minutes:
            while len(self._sent) < now / self._every:
                self._send()
            if now >= 60 * minute:
                self._report(minute)
                minute += 1
            time.sleep(0.05)

    def _wait_for_the_rest(self) -> None:
        """Wait as long as there is progress."""
        done, since = 0, time.monotonic()
        while done < len(self._sent) and time.monotonic() - since < STALLED:
            time.sleep(1)
            now_done = len(self._statuses())
            if now_done > done:
                done, since = now_done, time.monotonic()

    def _send(self) -> None:
        number = len(self._sent)
        event = dict(self._survey.exposures[number % len(self._survey.exposures)].event)
        event["exposure_id"] = f"{event['exposure_id']}-{number:06d}"
        send_events(self._broker.bootstrap, self._topics.exposures, [event], number % PARTITIONS)
        self._sent.append(event["exposure_id"])

    def _statuses(self) -> list[dict[str, object]]:
        found = read_topic(self._broker.bootstrap, self._topics.status, 0)
        return [read_record(message) for message in found]

    def _report(self, minute: int) -> None:
        use = use_of(self._service.process.pid)
        self._uses.append(use)
        statuses = self._statuses()
        seconds = sorted(float(str(one["total_seconds"])) for one in statuses[-100:]) or [0.0]
        sys.stdout.write(
            f"{minute:3d} min: {len(self._sent)} sent, {len(statuses)} done, last 100 took "
            f"{statistics.median(seconds):.2f} s (95 %: {seconds[int(0.95 * len(seconds))]:.2f}); "
            f"{use.megabytes:.0f} MB, {use.cpu_seconds:.0f} CPU s, {use.files} files, "
            f"{use.threads} threads\n"
        )
        sys.stdout.flush()

    def _faults(self) -> list[str]:
        statuses = self._statuses()
        found = Counter(str(one["exposure_id"]) for one in statuses)
        outcomes = Counter(str(one["outcome"]) for one in statuses)
        alerts = [m.key() for m in read_topic(self._broker.bootstrap, self._topics.alerts, 0)]
        announced = sum(int(str(one["alerts"])) for one in statuses)
        use = use_of(self._service.process.pid)
        warm = self._uses[int(WARM_UP * len(self._uses))]
        sys.stdout.write(
            f"{len(self._sent)} sent, statuses {dict(outcomes)}, {len(alerts)} alerts of "
            f"{announced} announced; {warm.megabytes:.0f} MB warm, {use.megabytes:.0f} MB in the "
            f"end; {warm.files} files, then {use.files}; {warm.threads} threads, then "
            f"{use.threads}\n"
        )
        faults = []
        if found != Counter(self._sent):
            faults.append("not every exposure has exactly one status")
        if set(outcomes) != {"published"}:
            faults.append("not every exposure was published")
        if announced != len(alerts):
            faults.append("the statuses announce another number of alerts than there are")
        if use.megabytes > GROWTH * warm.megabytes:
            faults.append("the memory grows")
        if use.files > warm.files + 20 or use.threads > warm.threads + 5:
            faults.append("files or threads are left open")
        return faults


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=1.5, help="seconds between two exposures")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    with tempfile.TemporaryDirectory(prefix="skydelta-soak-") as temporary:
        folder = Path(temporary)
        try:
            with LocalBroker(folder / "broker") as broker:
                faults = Soak(broker, folder, options.minutes, options.every).run()
        except (BrokerUnavailable, BrokerFailed) as error:
            sys.stderr.write(f"{error}\n")
            return 1
    sys.stdout.write("".join(f"WRONG: {fault}\n" for fault in faults) or "all as it must be\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
