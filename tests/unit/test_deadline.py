"""Deadlines count down, and a part of one never outlives it."""

import math

import pytest

from core.deadline import Deadline


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_it_runs_out():
    clock = Clock()
    deadline = Deadline(5, clock)
    assert deadline.remaining() == 5
    assert not deadline.expired
    clock.now += 3
    assert deadline.remaining() == 2
    clock.now += 2
    assert deadline.expired
    clock.now += 10
    assert deadline.remaining() == 0


@pytest.mark.parametrize(("part", "left"), [(2, 2), (50, 5)])
def test_a_part_never_outlives_the_whole(part, left):
    clock = Clock()
    shorter = Deadline(5, clock).shorter(part)
    assert shorter.remaining() == left
    clock.now += left
    assert shorter.expired


def test_there_may_be_no_limit():
    deadline = Deadline(math.inf)
    assert not deadline.expired
    assert deadline.shorter(3).remaining() == pytest.approx(3, abs=1)
