"""Projection by the user's own SWarp (Bertin et al. 2002; https://www.astromatic.net/software/swarp)."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from core.image import FloatImage, MaskBit
from core.templates.cells.cell import CellImage
from core.templates.cells.survey_bits import Bits
from core.templates.wrong_request import WrongRequest

log = logging.getLogger(__name__)

NAMES = ("swarp", "SWarp")
SECONDS = 600.0

_LAST_LINES = 6
AnyPath = str | os.PathLike[str]


class SWarpFailed(WrongRequest):
    """SWarp is not installed, cannot be started, is late, or ends with an error."""


def find_swarp(name: str | None = None) -> str:
    """Return the full path of the user's SWarp.

    Parameters
    ----------
    name : str or None
        A name to look up on ``PATH``, or a path; None for the usual names.

    Raises
    ------
    SWarpFailed
        If it is not there; one sentence says what to do.
    """
    wanted = NAMES if name is None else (os.path.expanduser(name),)
    for candidate in wanted:
        found = shutil.which(candidate)
        if found is not None:
            return os.path.abspath(found)
    raise SWarpFailed(
        f"SWarp is not installed: no program {' or '.join(map(repr, wanted))} was found; install "
        "it (apt-get install swarp), or use reproject='lanczos', which needs no program"
    )


def check_grid(wcs: WCS) -> None:
    """Raise WrongRequest for a grid that SWarp cannot make."""
    if wcs.sip is not None:
        raise WrongRequest("SWarp knows no SIP distortions; use reproject='lanczos'")


def swarp_image(
    cells: Sequence[CellImage],
    wcs: WCS,
    shape: tuple[int, int],
    zero_point: float,
    *,
    extra: Mapping[str, object] | None = None,
    seconds: float = SECONDS,
    _exe: str | None = None,
    _tmpdir: AnyPath | None = None,
    _workdir: AnyPath | None = None,
) -> FloatImage:
    """Project the images of cells onto a grid and average them, weighted.

    Parameters
    ----------
    cells : sequence of CellImage
    wcs : WCS
        Of the grid; SWarp knows no SIP.
    shape : tuple of int
        (ny, nx) of the grid.
    zero_point : float
        AB magnitude of one unit of the result.
    extra : mapping or None
        Parameters of SWarp, which win over ours.
    seconds : float
        After which it is stopped.
    _exe : str or None
        Its executable.
    _tmpdir : path or None
        Where the folder of its files is made.
    _workdir : path or None
        Where its files are, and stay.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        NaN where there is no data.

    Raises
    ------
    SWarpFailed
        If it does not deliver.
    ValueError
        If the grid has a SIP distortion.
    """
    program = find_swarp(_exe)
    with _folder(_tmpdir, _workdir) as folder:
        names = []
        for number, cell in enumerate(cells):
            image = cell.image
            assert image.wcs is not None
            assert image.variance is not None
            factor = 1.0
            if image.facts.zero_point is not None:
                factor = 10 ** (0.4 * (zero_point - image.facts.zero_point))
            missing = (image.mask & MaskBit.NO_DATA) != 0
            weight = np.where(missing, 0, 1 / (image.variance * factor**2))
            name = f"cell{number:03d}.fits"
            header = image.wcs.to_header()
            fits.writeto(
                folder / name, (image.data * factor).astype(np.float32), header, overwrite=True
            )
            fits.writeto(
                folder / f"cell{number:03d}.weight.fits",
                weight.astype(np.float32),
                header,
                overwrite=True,
            )
            names.append(name)
        options = {"WEIGHT_TYPE": "MAP_WEIGHT", "RESCALE_WEIGHTS": "N", "COMBINE_TYPE": "WEIGHTED"}
        data, weight = _run(program, folder, names, wcs, shape, options, extra, seconds)
    return np.where(weight > 0, data, np.float32(np.nan)).astype(np.float32)


def swarp_bits(
    cells: Sequence[CellImage],
    wcs: WCS,
    shape: tuple[int, int],
    uncovered: int,
    *,
    extra: Mapping[str, object] | None = None,
    seconds: float = SECONDS,
    _exe: str | None = None,
    _tmpdir: AnyPath | None = None,
    _workdir: AnyPath | None = None,
) -> Bits:
    """Project the masks of cells onto a grid; a bit stays where all cells have it.

    Parameters
    ----------
    uncovered : int
        Bits of pixels that no cell covers.
    cells, wcs, shape, extra, seconds, _exe, _tmpdir, _workdir
        As `swarp_image`.

    Returns
    -------
    ndarray of int32, shape (ny, nx)

    Raises
    ------
    SWarpFailed, ValueError
        As `swarp_image`.
    """
    program = find_swarp(_exe)
    with _folder(_tmpdir, _workdir) as folder:
        result = np.full(shape, -1, np.int32)
        for number, cell in enumerate(cells):
            assert cell.bits is not None
            assert cell.image.wcs is not None
            missing = (cell.image.mask & MaskBit.NO_DATA) != 0
            bits = np.where(missing, cell.bits | uncovered, cell.bits).astype(np.int32)
            name = f"cell{number:03d}.fits"
            fits.writeto(folder / name, bits, cell.image.wcs.to_header(), overwrite=True)
            options = {
                "WEIGHT_TYPE": "NONE", "RESAMPLING_TYPE": "FLAGS", "COMBINE_TYPE": "OR",
                "FSCALASTRO_TYPE": "NONE", "IMAGEOUT_NAME": f"mask{number:03d}.fits",
                "WEIGHTOUT_NAME": f"mask{number:03d}.weight.fits",
            }  # fmt: skip
            found, weight = _run(program, folder, [name], wcs, shape, options, extra, seconds)
            covered = weight > 0
            result[covered] &= np.rint(found[covered]).astype(np.int32)
    result[result == -1] = uncovered
    return result


@contextmanager
def _folder(tmpdir: AnyPath | None, workdir: AnyPath | None) -> Iterator[Path]:
    if workdir is not None:
        folder = Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="skydelta-swarp-", dir=tmpdir) as name:
        yield Path(name)


def _run(
    program: str,
    folder: Path,
    names: Sequence[str],
    wcs: WCS,
    shape: tuple[int, int],
    options: Mapping[str, object],
    extra: Mapping[str, object] | None,
    seconds: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Run SWarp on some files of a folder; return the coadd and its weight."""
    check_grid(wcs)
    parameters: dict[str, object] = {
        "IMAGEOUT_NAME": "coadd.fits", "WEIGHTOUT_NAME": "coadd.weight.fits",
        "SUBTRACT_BACK": "N", "FSCALASTRO_TYPE": "VARIABLE", "RESAMPLING_TYPE": "LANCZOS3",
        "RESAMPLE_DIR": ".", "VMEM_DIR": ".", "WRITE_XML": "N", "VERBOSE_TYPE": "LOG",
        "NTHREADS": 1,
    }  # fmt: skip
    parameters |= dict(options)
    parameters |= {key.upper(): value for key, value in (extra or {}).items()}
    output, weight = (str(parameters[f"{name}OUT_NAME"]) for name in ("IMAGE", "WEIGHT"))
    header = wcs.to_header(relax=True)
    header.insert(0, ("NAXIS", 2))
    header.insert(1, ("NAXIS1", shape[1]))
    header.insert(2, ("NAXIS2", shape[0]))
    (folder / output).with_suffix(".head").write_text(
        header.tostring(sep="\n", endcard=True, padding=False) + "\n", encoding="ascii"
    )
    (folder / "swarp.conf").write_text("", encoding="ascii")
    arguments = [program, *names, "-c", "swarp.conf"]
    for key, value in parameters.items():
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        arguments += [f"-{key}", text]
    log.debug("running %s in %s", " ".join(arguments), folder)
    try:
        done = subprocess.run(
            arguments, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SWarpFailed(f"SWarp was stopped after {seconds:g} s; it did not finish") from error
    except OSError as error:
        raise SWarpFailed(f"SWarp cannot be started: {error}") from error
    lines = [line.strip() for line in done.stdout.decode("utf-8", "replace").splitlines()]
    said = " / ".join([line for line in lines if line][-_LAST_LINES:]) or "(none)"
    if done.returncode != 0:
        raise SWarpFailed(f"SWarp ended with status {done.returncode}; its last words: {said}")
    planes = []
    for name in (output, weight):
        try:
            planes.append(np.asarray(fits.getdata(folder / name)))
        except OSError as error:
            raise SWarpFailed(f"SWarp left no {name} ({error}); its last words: {said}") from error
    if planes[0].shape != shape:
        raise SWarpFailed(
            f"SWarp made {planes[0].shape[1]} x {planes[0].shape[0]} pixels instead of "
            f"{shape[1]} x {shape[0]}"
        )
    return planes[0], planes[1]
