"""One short name for a photometric band, whatever the observatory calls it."""

from __future__ import annotations

import re

# The longer name of a filter system in front of, or behind, the one letter that matters.
_SYSTEM = re.compile(
    r"^(?:ztf|sdss|ps1|panstarrs|pan-starrs|decam|des|lsst|gpc1|megacam|bok|bass|mzls|atlas|"
    r"bessell?|johnson|cousins|kron)[\s_\-.:]*",
    re.IGNORECASE,
)
_TAIL = re.compile(r"(?:\s+\S.*|\.0+|')$", re.DOTALL)
_NARROW = re.compile(r"^(?:h|o|s|n)[\s_\-]*(?:alpha|beta|i{2,3}|a|b)\b", re.IGNORECASE)
_OPEN = frozenset({"clear", "open", "none", "air", "empty", "white", "lum", "l", "c", "no filter"})
_PLAIN = re.compile(r"^(?P<letter>[ugrizywGRIZYUBVJHKo])(?:p|s|prime|')?$")


def canonical_band(name: str | None) -> str | None:
    """Return the short name under which bands of different observatories are compared.

    Sloan-like bands become lower-case letters, Johnson-Cousins ones upper-case letters, no filter
    at all becomes ``clear``; a name that is not understood comes back in lower case, so that equal
    names still match.

    Parameters
    ----------
    name : str or None
        As the header or the event has it: ``ZTF_r``, ``r DECam SDSS c0002 6415.0 1480.0``, ``ip``,
        ``i.00000``, ``Clear``.

    Returns
    -------
    str or None
        None where there is no name.
    """
    text = (name or "").strip()
    if not text:
        return None
    if text.lower() in _OPEN:
        return "clear"
    if _NARROW.match(text):
        return text.lower()
    johnson = re.match(r"^(?:bessell?|johnson|cousins|kron)", text, re.IGNORECASE) is not None
    core = _SYSTEM.sub("", text)
    core = re.sub(r"^(?:sdss)[\s_\-.:]*", "", core, flags=re.IGNORECASE)
    core = _TAIL.sub("", core) or core
    # ZTF's and MzLS's file names: zg, zr, zi; zd is MzLS's z band.
    if core in {"zg", "zr", "zi"}:
        return core[1]
    if core in {"Rc", "Ic"}:  # Cousins
        return core[0]
    if core == "zd":
        return "z"
    match = _PLAIN.match(core)
    if match is None and len(core) == 2 and core[1] in "pP" and core[0] in "UGRIZugriz":
        return core[0].lower()
    if match is None:
        return text.lower()
    letter = match["letter"]
    if johnson:
        return letter.upper()
    if letter != core and letter in "GRIZYU":  # "Rp", "Is"
        return letter.lower()
    if _SYSTEM.match(text) and letter in "GRIZYU":
        return letter.lower()
    return letter


def same_band(one: str | None, other: str | None) -> bool:
    """Return whether both names are known and mean the same band."""
    first, second = canonical_band(one), canonical_band(other)
    return first is not None and first == second
