"""``make chaos``: many rounds, their seeds and counts; ends with status 1 where one went wrong."""

from __future__ import annotations

import argparse
import logging
import random
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from tests.chaos.rounds import Plan, Round, run_round
from tests.chaos.service import FAULTS, NO_FAULT
from tests.kafka.errors import BrokerFailed, BrokerUnavailable
from tests.kafka.local_broker import LocalBroker


def main(arguments: list[str] | None = None) -> int:
    """Run rounds and print a line for each."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, help="of the first round; each next one adds 1")
    parser.add_argument("--fault", choices=(NO_FAULT, *FAULTS), default=NO_FAULT,
                        help="run a broken service, to see that it is found out")  # fmt: skip
    parser.add_argument("--keep", type=Path, help="folder to keep settings and logs in")
    parser.add_argument("--verbose", action="store_true", help="say what happened when")
    options = parser.parse_args(arguments)
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background of a script
    say = sys.stdout.write
    bad = []
    with tempfile.TemporaryDirectory(prefix="skydelta-chaos-") as temporary:
        folder = options.keep or Path(temporary)
        try:
            with LocalBroker(folder / "broker") as broker:
                for seed in range(first, first + options.rounds):
                    plan = Plan.drawn(seed, fault=options.fault)
                    one = run_round(plan, broker, folder / f"seed-{seed}")
                    say(_line(one, options.verbose))
                    sys.stdout.flush()
                    bad += [seed] if one.faults else []
        except (BrokerUnavailable, BrokerFailed) as error:
            sys.stderr.write(f"{error}\n")
            return 1
    if bad:
        seeds = ", ".join(map(str, bad))
        say(f"went wrong: {seeds}; run one again with --rounds 1 --seed {bad[0]} --keep FOLDER\n")
        return 1
    say(f"{options.rounds} rounds, all as it must be\n")
    return 0


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _line(one: Round, verbose: bool) -> str:
    plan, tally = one.plan, one.tally
    head = (
        f"seed {plan.seed} ({plan.protocol}): {tally.events} events, {tally.statuses} statuses, "
        f"{tally.alerts} alerts, {tally.uncommitted} records aborted or markers; "
        f"{len(one.happened)} blows, {one.starts} starts of services, {one.seconds:.0f} s\n"
    )
    more = [*(one.happened if verbose else ()), *(f"WRONG: {fault}" for fault in one.faults)]
    return head + "".join(f"    {line}\n" for line in more)


if __name__ == "__main__":
    sys.exit(main())
