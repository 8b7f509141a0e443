"""Lists of fields: what is read, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import InputUnavailable, UnusableInput
from service.field_list import DetectorDefaults, read_fields

DETECTOR = DetectorDefaults(band="r", width=4096, height=2048, pixel_scale=1.01)


def written(folder: Path, text: str) -> Path:
    path = folder / "fields.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_win_over_the_options(tmp_path: Path) -> None:
    text = """\
name, RA, Dec, band, width, position_angle, mirrored, remark
north, 10.5, +20.25, , , , , the options hold
# a comment, 1, 2
south, 11, -45, g, 512, 90, true, "its own, mostly"

"""
    north, south = read_fields(written(tmp_path, text), DETECTOR)
    assert (north.pointing_id, north.ra, north.dec, north.band) == ("north", 10.5, 20.25, "r")
    assert (north.width, north.height, north.pixel_scale) == (4096, 2048, 1.01)
    assert (south.band, south.width, south.height) == ("g", 512, 2048)
    assert (south.position_angle, south.mirrored) == (90.0, True)


def test_a_field_without_a_name_is_called_by_its_line(tmp_path: Path) -> None:
    (field,) = read_fields(written(tmp_path, "ra,dec\n1,2\n"), DETECTOR)
    assert field.pointing_id == "line 2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must name columns ra and dec; it names nothing"),
        ("ra,declination\n1,2\n", "it names ra, declination"),
        ("ra,dec\n", "has no field"),
        ("ra,dec\n1,2\n12:30:00,3\n", "line 3: could not convert string to float: '12:30:00'"),
        ("ra,dec\n400,2\n", "line 2: ra should be less than or equal to 360"),
        ("ra,dec,mirrored\n1,2,perhaps\n", "mirrored should be true or false"),
        ("ra,dec,width\n1,2,12.5\n", "line 2: invalid literal for int"),
        ("ra,dec\n,2\n", "ra, dec and pixel_scale are needed"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableInput) as caught:
        read_fields(written(tmp_path, text), DETECTOR)
    assert said in str(caught.value)


def test_what_the_options_leave_open_must_be_in_the_row(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match=r"line 2: band is missing; width is missing"):
        read_fields(written(tmp_path, "ra,dec,pixel_scale\n1,2,1\n"), DetectorDefaults())


def test_a_missing_file_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputUnavailable, match="No such file"):
        read_fields(tmp_path / "none.csv", DETECTOR)
    path = tmp_path / "fields.csv"
    path.write_bytes(b"ra,dec\n\xff\xfe\n")
    with pytest.raises(UnusableInput, match="not UTF-8"):
        read_fields(path, DETECTOR)
