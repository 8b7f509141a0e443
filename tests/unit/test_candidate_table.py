"""``candidates.ecsv``: what is not known is masked, and an empty table is still a table."""

from pathlib import Path

import numpy as np
from astropy.table import Table

from service.candidate_table import candidate_table
from tests.unit.made_result import made_candidate, made_result, tan_wcs


def read_back(table: Table, folder: Path) -> Table:
    path = folder / "candidates.ecsv"
    table.write(path, format="ascii.ecsv")
    return Table.read(path, format="ascii.ecsv")


def test_no_candidates_give_the_same_columns(tmp_path: Path) -> None:
    empty = read_back(candidate_table(made_result(candidates=()), []), tmp_path)
    full = candidate_table(made_result(), [(1, "a"), (2, "b"), (3, "c")])
    assert len(empty) == 0
    assert empty.colnames == full.colnames
    assert {name: empty[name].dtype.kind for name in empty.colnames} == {
        name: full[name].dtype.kind for name in full.colnames
    }


def test_what_is_not_known_is_masked(tmp_path: Path) -> None:
    candidate = made_candidate(
        10.0, 20.0, None, mag=None, mag_err=float("nan"), nearest=None, rb=None
    )
    table = read_back(candidate_table(made_result(aligned=True, candidates=(candidate,))), tmp_path)
    for name in ("ra", "dec", "mag", "mag_err", "nearest_mag", "nearest_distance", "rb"):
        assert table[name].mask.all(), name
    assert "candid" not in table.colnames
    assert float(table["flux"][0]) == 2000.0


def test_rows_are_ordered_and_keep_their_names(tmp_path: Path) -> None:
    wcs = tan_wcs()
    candidates = tuple(made_candidate(x, 9.0, wcs, snr=snr) for x, snr in ((1, 6), (2, 60), (3, 9)))
    result = made_result(wcs, candidates=candidates)
    table = read_back(candidate_table(result, [(11, "p"), (2**62, "q"), (33, "r")]), tmp_path)
    assert list(table["x"]) == [2, 3, 1]
    assert list(table["candid"]) == [2**62, 33, 11]
    assert list(table["object_id"]) == ["q", "r", "p"]


def test_positions_keep_their_precision(tmp_path: Path) -> None:
    wcs = tan_wcs()
    result = made_result(wcs, candidates=(made_candidate(123.45678, 9.87654, wcs),))
    table = read_back(candidate_table(result), tmp_path)
    assert abs(table["x"][0] - 123.45678) < 1e-4
    x, _ = wcs.world_to_pixel_values(table["ra"][0], table["dec"][0])
    assert abs(x - 123.45678) < 1e-4


def test_flags_stand_in_words_too(tmp_path: Path) -> None:
    result = made_result(candidates=(made_candidate(9.0, 9.0, tan_wcs(), flags=8 | 256),))
    table = read_back(candidate_table(result), tmp_path)
    assert np.asarray(table["flags"]).tolist() == [264]
    assert table["flag_names"][0] == "edge poor_fit"
