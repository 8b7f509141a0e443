"""Warnings are silenced for all threads that ask for it, and for no longer."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from core.fitsfile import open_fits
from core.quiet import quiet
from core.templates.hips.tree import read_tile


@pytest.fixture(autouse=True)
def heard() -> Iterator[list[warnings.WarningMessage]]:
    """All warnings that got out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


class Other:
    """A thread that does one thing after another, as it is told."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def does(self, what: Callable[[], object]) -> None:
        self._pool.submit(what).result(timeout=10)


def complain() -> None:
    warnings.warn("out of tune", UserWarning, stacklevel=1)


def test_one_thread_is_silent(heard: list[warnings.WarningMessage]) -> None:
    with quiet():
        complain()
        with quiet():
            complain()
        complain()
    assert heard == []
    complain()
    assert len(heard) == 1


def test_the_silence_lasts_until_the_last_thread_has_left(
    heard: list[warnings.WarningMessage],
) -> None:
    before = list(warnings.filters)
    one, other, first, second = Other(), Other(), quiet(), quiet()
    one.does(first.__enter__)
    other.does(second.__enter__)
    one.does(lambda: first.__exit__(None, None, None))
    other.does(complain)
    assert heard == []
    other.does(lambda: second.__exit__(None, None, None))
    assert warnings.filters == before
    other.does(complain)
    assert len(heard) == 1


def test_an_error_ends_it_too(heard: list[warnings.WarningMessage]) -> None:
    with pytest.raises(ZeroDivisionError), quiet():
        raise ZeroDivisionError
    complain()
    assert len(heard) == 1


def test_files_that_are_read_in_threads_leave_the_warnings_as_they_were(
    tmp_path: Path, heard: list[warnings.WarningMessage]
) -> None:
    """Headers and compressed tiles; each thread has something to complain about, too."""
    path = tmp_path / "tile.fits"
    hdu = fits.CompImageHDU(np.ones((64, 64), np.float32), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    before, start = list(warnings.filters), threading.Barrier(8)

    def read(number: int) -> None:
        start.wait(10)
        for _ in range(20):
            if number % 2:
                open_fits(path, max_pixels=0)
            else:
                assert read_tile(path, 64, "the tile").mean() == 1
            with quiet():
                complain()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert warnings.filters == before
    assert heard == []
    complain()
    assert len(heard) == 1
