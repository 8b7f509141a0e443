"""The benchmark of templates counts what it says, on the smallest of surveys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from tests.archive.hips import fits_bytes
from tests.benchmarks.bench_templates import OVERLAP, SCALE, Plan, measure
from tests.benchmarks.made_surveys import with_cards


def test_visits_of_a_hips_cost_what_they_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    visits = dict(measure(Plan(2, 1, 300), "hips", tmp_path, threads=1))
    cold, warm, kept = (visits[name] for name in ("cold", "warm", "kept"))
    assert cold.requests == cold.misses >= 5
    tiles = cold.megabytes / (512 * 512 * 4 / 1e6)
    assert round(tiles) in (cold.requests - 2, cold.requests - 1)  # properties, and no Moc
    assert cold.hits >= 2  # what the second pointing shares with the first
    assert warm.hits > 0
    assert (warm.exposures, warm.kept, kept.exposures, kept.kept) == (2, 0, 2, 2)
    assert (kept.requests, kept.megabytes, kept.misses) == (0, 0, 0)
    for spent in (cold, warm, kept):
        assert spent.cpu > 0
        assert 0 < spent.finding <= spent.wall
        assert spent.wall / 2 <= spent.slowest <= spent.wall


def test_pointings_overlap_as_it_says() -> None:
    centres = np.array(Plan(3, 2, 1000).centres)
    assert len(centres) == 6
    assert np.diff(centres[::3, 1]) == pytest.approx((1 - OVERLAP) * 1000 * SCALE / 3600)
    across = np.diff(centres[:3, 0]) * np.cos(np.radians(centres[0, 1]))
    assert across == pytest.approx((1 - OVERLAP) * 1000 * SCALE / 3600, rel=1e-3)


def test_cards_are_changed_and_nothing_else(tmp_path: Path) -> None:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = 150.0, 2.0
    wcs.wcs.cdelt = -1e-3, 1e-3
    pixels = np.arange(12, dtype=np.float32).reshape(3, 4)
    file = fits_bytes(pixels, wcs)
    path = tmp_path / "changed.fits"
    path.write_bytes(with_cards(file, CRVAL1=151.25, CRVAL2=-3.5))
    assert path.stat().st_size == len(file)
    data, header = fits.getdata(path, header=True)
    assert (data == pixels).all()
    assert (header["CRVAL1"], header["CRVAL2"], header["CTYPE1"]) == (151.25, -3.5, "RA---TAN")
