"""``skydelta templates``: what people see of the cache, and what is done to it."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from core.errors import NotInArchive
from core.pointing import tangential_grid
from core.templates.cache import CacheKey, TemplateCache
from service.cli import main

TILE = CacheKey("hips-tile", ("survey", "Norder3/Dir0/Npix7.fits"))
CELL = CacheKey("ps1-cell", ("rings.v3.skycell.1234.056", "r"))
HOLE = CacheKey("ps1-cell", ("rings.v3.skycell.9999.099", "r"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TemplateCache:
    monkeypatch.setenv("SKYDELTA_TEMPLATES__CACHE", str(tmp_path / "cache"))
    cache = TemplateCache(tmp_path / "cache")

    def hole(path: Path) -> None:
        raise NotInArchive("no such cell")

    with cache.entry(TILE, lambda p: p.write_bytes(b"a" * 4000) and None):
        pass
    with cache.entry(CELL, lambda p: p.write_bytes(b"b" * 9000) and {"url": "http://x"}):
        pass
    with pytest.raises(NotInArchive), cache.entry(HOLE, hole):
        pass
    return cache


def file_of(cache: TemplateCache, key: CacheKey) -> Path:
    (found,) = [e.stored.data for e in cache.entries() if e.stored.digest == key.digest]
    assert found is not None
    return found


def test_list_shows_sums_entries_and_holes(
    cache: TemplateCache, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["templates", "list"]) == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    assert lines["ps1-cell"][1:3] == ["2", "1"]
    assert lines["hips-tile"][1:3] == ["1", "0"]
    assert TILE.digest[:12] in shown
    assert "hole: no such cell" in shown
    assert main(["templates", "list", "--kind", "hips-tile", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["identity"] == list(TILE.identity)
    assert main(["templates", "list", "--limit", "1"]) == 0
    assert "and 2 more" in capsys.readouterr().out


def test_the_size_is_known_without_looking(cache: TemplateCache) -> None:
    assert cache.size == cache.statistics().size > 13_000
    assert TemplateCache(cache.folder / "none").size == 0


def test_an_empty_cache_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKYDELTA_TEMPLATES__CACHE", str(tmp_path / "none"))
    for action in ("list", "verify", "prune"):
        assert main(["templates", action]) == 0
    assert "nothing is kept" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_show_takes_the_beginning_of_an_id(
    cache: TemplateCache, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["templates", "show", CELL.digest[:8].upper()]) == 0
    shown = capsys.readouterr().out
    assert "http://x" in shown
    assert "rings.v3.skycell.1234.056" in shown
    assert main(["templates", "show", "zz"]) == 2
    assert "no entry of" in capsys.readouterr().err


def test_verify_removes_what_is_damaged_and_says_so(
    cache: TemplateCache, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["templates", "verify"]) == 0
    assert "3 of 3 entries are sound" in capsys.readouterr().out
    path = file_of(cache, TILE)
    path.write_bytes(b"a" * 3999 + b"x")
    assert main(["templates", "verify"]) == 3
    shown = capsys.readouterr().out
    assert f"removed hips-tile {TILE.digest[:12]}" in shown
    assert "2 of 3 entries are sound" in shown
    assert not path.exists()


def test_prune_keeps_what_was_used_last(
    cache: TemplateCache, capsys: pytest.CaptureFixture[str]
) -> None:
    with cache.entry(TILE, lambda p: pytest.fail("it is there")):
        pass
    assert main(["templates", "prune", "--max-bytes", "6k", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes"] <= 6000
    assert file_of(cache, TILE).exists()
    assert CELL.digest not in {e.stored.digest for e in cache.entries()}
    assert main(["templates", "prune", "--max-bytes", "much"]) == 2
    assert "is no number of bytes" in capsys.readouterr().err


def test_prefetch_asks_for_every_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    header = tangential_grid((10.0, 20.0), (80, 80), 1.0).to_header()
    header["FILTER"] = "r"
    pixels = np.random.default_rng(1).normal(100, 5, (80, 80)).astype(np.float32)
    fits.PrimaryHDU(pixels, header).writeto(folder / "t.fits")
    monkeypatch.setenv("SKYDELTA_TEMPLATES__PATH", str(folder))
    monkeypatch.setenv("SKYDELTA_TEMPLATES__CACHE", str(tmp_path / "cache"))
    fields = tmp_path / "fields.csv"
    fields.write_text("name,ra,dec\nthere,10,20\nelsewhere,200,20\n")
    command = ["templates", "prefetch", str(fields), "--band", "r", "--size", "60", "--json"]
    assert main([*command, "--pixel-scale", "1.0"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {f["name"]: f["result"] for f in facts["fields"]} == {
        "there": "fetched", "elsewhere": "none",
    }  # fmt: skip
    assert main(command) == 2
    assert "line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["list", "--limit", "-3"], ["list", "--limit", "x"], ["prefetch", "f.csv", "--deadline", "0"],
     ["prefetch", "f.csv", "--deadline", "nan"]],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["templates", *options])
    assert caught.value.code == 2
    assert f"{options[-1]!r} is no" in capsys.readouterr().err


class Terminal(io.StringIO):
    """A stderr that somebody sits before."""

    def isatty(self) -> bool:
        return True


def test_prefetch_speaks_to_people_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored_logging: None
) -> None:
    monkeypatch.setenv("SKYDELTA_TEMPLATES__PATH", str(tmp_path))
    monkeypatch.setenv("SKYDELTA_TEMPLATES__CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SKYDELTA_LOG__FORMAT", "json")
    fields = tmp_path / "fields.csv"
    fields.write_text("name,ra,dec,band,width,height,pixel_scale\nthere,10,20,r,60,60,1\n")
    before, bar = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr", before)
    assert main(["templates", "prefetch", str(fields), "--deadline", "5"]) == 0
    monkeypatch.setattr(sys, "stderr", bar)  # as a progress bar does it
    logging.getLogger("core.templates").warning("an archive is slow")
    assert bar.getvalue().endswith("WARNING an archive is slow\n")
    assert "an archive is slow" not in before.getvalue()


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
