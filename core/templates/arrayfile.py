"""Arrays in one file as they lie in memory, with some facts: nothing to parse, nothing to scale.

Layout: the line ``skydelta arrays 1``, the length of a JSON text in a line of its own, the text
(facts, and for each array dtype, shape and offset), then the arrays, each at a multiple of 4096.
The numbers are in the byte order of the machine that wrote them, which dtype states.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

_MAGIC = b"skydelta arrays 1\n"
_ALIGNMENT = 4096
_LENGTH = 16  # characters of the line with the length


def write_arrays(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]
) -> None:
    """Write arrays and facts.

    Parameters
    ----------
    path : Path
        The file; replaced.
    arrays : mapping of str to ndarray
        Any number of any shape; no objects.
    facts : mapping
        What JSON knows, and NumPy's numbers.
    """
    table: dict[str, Any] = {}
    begin = 0
    for name, array in arrays.items():
        table[name] = {"dtype": array.dtype.str, "shape": array.shape, "offset": begin}
        begin += array.nbytes + -array.nbytes % _ALIGNMENT
    text = json.dumps({"facts": facts, "arrays": table}, default=_plain).encode()
    head = _MAGIC + b"%-*d\n" % (_LENGTH - 1, len(text)) + text
    with path.open("wb") as stream:
        stream.write(head + b" " * (-len(head) % _ALIGNMENT))
        for array in arrays.values():
            stream.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
            stream.write(b"\0" * (-array.nbytes % _ALIGNMENT))


def read_arrays(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return the arrays, in memory of their own, and the facts.

    They are read and not mapped: of a mapped page that a failing disk does not deliver, the process
    would die.

    Raises
    ------
    ValueError
        If it is not such a file.
    OSError
        If it cannot be read.
    """
    with path.open("rb", buffering=0) as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path}: holds no arrays")
        length = int(stream.read(_LENGTH))
        described = json.loads(stream.read(length))
        begin = len(_MAGIC) + _LENGTH + length
        begin += -begin % _ALIGNMENT
        arrays = {}
        for name, each in described["arrays"].items():
            stream.seek(begin + each["offset"])
            arrays[name] = _read(stream, np.dtype(each["dtype"]), tuple(each["shape"]))
    return arrays, described["facts"]


def _read(stream: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    count = math.prod(shape)
    array = np.fromfile(stream, dtype=dtype, count=count)
    if array.size != count:
        raise ValueError(f"{stream.name}: an array of it is not complete")
    return array.reshape(shape)


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not to be kept as a fact")
