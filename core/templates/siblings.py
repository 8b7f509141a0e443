"""Which file is the mask or the weight of which: naming conventions of separate planes.

For a template ``NAME.fits`` (or ``.fit``, ``.fts``; plain, ``.gz``, ``.fz``, ``.bz2``) they are

=========  =====================================================================
mask       ``NAME.mask.fits``, ``NAME_mask.fits``; also ``msk``, ``dq``, ``bpm``
weight     ``NAME.weight.fits``, ``NAME_weight.fits``; also ``wht``, ``ivar``, ``invvar``
variance   ``NAME.var.fits``, ``NAME_var.fits``; also ``variance``
=========  =====================================================================

with any of the endings, and two surveys' own: ZTF (``_sciimg`` and ``_mskimg``) and the Community
Pipeline (``_ooi_``, ``_ood_``, ``_oow_``). Extensions of the same file need no names of files; see
`core.reading`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_ENDING = re.compile(r"\.(?:fits|fit|fts)(?:\.(?:gz|fz|bz2))?$", re.IGNORECASE)
_WORDS: Mapping[str, tuple[str, ...]] = {
    "mask": ("mask", "msk", "dq", "bpm"),
    "weight": ("weight", "wht", "ivar", "invvar"),
    "variance": ("var", "variance"),
}
_OTHER_WORDS = ("rms", "err", "unc", "cov", "exp", "nexp")
_SURVEYS: tuple[tuple[str, str, str], ...] = (
    ("mask", "_mskimg", "_sciimg"),
    ("mask", "_ood_", "_ooi_"),
    ("weight", "_oow_", "_ooi_"),
)
_SIDE = re.compile(
    rf"[._-](?:{'|'.join([w for words in _WORDS.values() for w in words] + list(_OTHER_WORDS))})$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Siblings:
    """The separate planes of an image, None where there is none."""

    mask: str | None = None
    weight: str | None = None
    variance: str | None = None


def is_fits_name(name: str) -> bool:
    """Return whether a file is called like a FITS file."""
    return _ENDING.search(name) is not None


def is_side_plane(name: str) -> bool:
    """Return whether a file is called like the mask, weight or variance of another."""
    stem = _ENDING.sub("", name)
    return bool(_SIDE.search(stem)) or any(theirs in stem for _, theirs, _ in _SURVEYS)


def planes_by_stem(names: Iterable[str]) -> dict[str, str]:
    """Return the planes among the file names of a folder, by name without ending."""
    return {_ENDING.sub("", name): name for name in sorted(names) if is_side_plane(name)}


def siblings_of(name: str, planes: Mapping[str, str]) -> Siblings:
    """Return the planes that belong to an image.

    Parameters
    ----------
    name : str
        File name of the image.
    planes : mapping of str to str
        The planes in its folder, from `planes_by_stem`.
    """
    if not planes:
        return Siblings()
    stem = _ENDING.sub("", name)
    found: dict[str, str] = {}
    for role, words in _WORDS.items():
        for candidate in (f"{stem}{joint}{word}" for word in words for joint in "._-"):
            if candidate in planes:
                found.setdefault(role, planes[candidate])
    for role, theirs, ours in _SURVEYS:
        candidate = stem.replace(ours, theirs)
        if ours in stem and candidate in planes:
            found.setdefault(role, planes[candidate])
    return Siblings(**found)
