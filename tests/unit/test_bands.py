"""Names of bands as observatories write them."""

import pytest

from core.bands import canonical_band, same_band


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ZTF_r", "r"),
        ("zg", "g"),
        ("zd DECam k1038", "z"),
        ("r DECam SDSS c0002 6415.0 1480.0", "r"),
        ("i.00000", "i"),
        ("ip", "i"),
        ("SDSS_RP", "r"),
        ("r'", "r"),
        ("bokr", "r"),
        ("R", "R"),
        ("Rc", "R"),
        ("Cousins R", "R"),
        ("Bessell V", "V"),
        ("Johnson-B", "B"),
        ("Clear", "clear"),
        ("open", "clear"),
        ("H-alpha 6563", "h-alpha 6563"),
        ("H alpha", "h alpha"),
        ("58", "58"),
        ("", None),
        (None, None),
    ],
)
def test_canonical_names(name, expected):
    assert canonical_band(name) == expected


def test_an_unknown_band_is_like_no_other():
    assert same_band("ZTF_r", "r")
    assert not same_band("R", "r")
    assert not same_band(None, None)
