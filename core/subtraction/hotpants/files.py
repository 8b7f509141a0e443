"""The files that HOTPANTS reads and writes, and the folder they live in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from core.errors import SubtractionFailed
from core.image import FloatImage, Image
from core.stars import StarList
from core.subtraction.hotpants.command import Options

# The bit of HOTPANTS's own masks that means "for sure bad, do not use"; with any lower one a pixel
# is still convolved and written.
FORBIDDEN = 0x80

FILL = 1e-30
NOISE_FILL = 0.0

# Plain names in its own working directory: CFITSIO reads brackets in a path as a filter, and a
# long path finds the limits of fixed buffers.
SCIENCE, TEMPLATE = "science.fits", "template.fits"
SCIENCE_MASK, TEMPLATE_MASK = "science_mask.fits", "template_mask.fits"
SCIENCE_NOISE, TEMPLATE_NOISE = "science_noise.fits", "template_noise.fits"
STARS = "stars.txt"
OUTPUTS: Options = {
    "outim": ("difference.fits",),
    "oci": ("convolved.fits",),
    "oni": ("noise.fits",),
    "ond": ("scaled.fits",),
    "oki": ("kernel.fits",),
    "savexy": ("stamps.reg",),
}


@dataclass(frozen=True)
class Planes:
    """What HOTPANTS wrote, its fill values told apart.

    Attributes
    ----------
    difference, convolved, noise : ndarray of float32, shape (ny, nx)
        Zero where not ``valid``.
    valid : ndarray of bool, shape (ny, nx)
        False where the program gave no value: its fill value, or one that is not finite.
    header : astropy.io.fits.Header
        Of the difference.
    stamps_used, stamps_skipped : int
        Places that the kernel was fitted on, and that it left out.
    """

    difference: FloatImage
    convolved: FloatImage
    noise: FloatImage
    valid: npt.NDArray[np.bool_]
    header: fits.Header
    stamps_used: int
    stamps_skipped: int


@contextmanager
def working_folder(temporary: str | None, keep: str | None) -> Iterator[Path]:
    """Give a folder for one run.

    Parameters
    ----------
    temporary : str, optional
        Where to make a folder of its own, which is removed however the block is left; the
        system's temporary folder when None.
    keep : str, optional
        A folder to use instead, made where it is missing and left with all its files.
    """
    if keep is not None:
        folder = Path(keep).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="hotpants-", dir=temporary) as name:
        yield Path(name).absolute()


def write_image(folder: Path, image: Image, names: tuple[str, str]) -> tuple[float, float]:
    """Write pixels and mask, and return the lowest and the highest good pixel, ADU.

    Masked pixels are written as the image's typical level: a saturated core or a bleed trail would
    otherwise be smeared by the kernel over pixels that count.
    """
    good = ~image.bad
    data = image.data
    if not good.any():
        raise SubtractionFailed(f"{image.name}: every pixel is masked; check the mask")
    values = data[good]
    if not good.all():
        step = max(1, values.size // 100_000)
        data = np.where(good, data, np.float32(np.median(values[::step])))
    fits.writeto(folder / names[0], data.astype(np.float32), overwrite=True)
    mask = np.where(good, 0, FORBIDDEN).astype(np.int16)
    fits.writeto(folder / names[1], mask, overwrite=True)
    return float(values.min()), float(values.max())


def write_noise(folder: Path, name: str, variance: FloatImage | None, image: Image) -> None:
    """Write a per-pixel RMS; zero everywhere for a variance of None, which is a noiseless image."""
    if variance is None:
        rms = np.zeros(image.shape, dtype=np.float32)
    else:
        rms = np.sqrt(np.maximum(variance, 0)).astype(np.float32)
        unknown = ~np.isfinite(rms)
        if unknown.any():
            rms[unknown] = np.median(rms[~unknown]) if not unknown.all() else 0
    fits.writeto(folder / name, rms, overwrite=True)


def write_stars(folder: Path, stars: StarList, shape: tuple[int, int]) -> int:
    """Write the centres of the substamps and return how many there are.

    One ``x y`` a line, counted from 1. Whole pixels: fractions would be cut off, not rounded.
    """
    x = np.rint(stars.sources.x).astype(int) + 1
    y = np.rint(stars.sources.y).astype(int) + 1
    inside = (x >= 1) & (y >= 1) & (x <= shape[1]) & (y <= shape[0])
    order = np.argsort(-stars.sources.flux[inside], kind="stable")
    lines = [f"{a} {b}\n" for a, b in zip(x[inside][order], y[inside][order], strict=True)]
    (folder / STARS).write_text("".join(lines), encoding="ascii")
    return len(lines)


def remove_outputs(folder: Path, options: Options) -> None:
    """Remove what an earlier run left in a folder that is kept: it must not be read as this one's.

    Only the names that this module chose; a path of the caller's own is left to the program.
    """
    for option, (name,) in OUTPUTS.items():
        if options.get(option) == (name,):
            (folder / name).unlink(missing_ok=True)


def read_planes(folder: Path, options: Options, shape: tuple[int, int]) -> Planes:
    """Read the difference and what goes with it.

    Raises
    ------
    core.errors.SubtractionFailed
        If a file is missing, unreadable or of another shape.
    """
    fill = _value(options, "fi", FILL)
    noise_fill = _value(options, "fin", NOISE_FILL)
    difference, header = _read(folder, options, "outim", shape)
    convolved, _ = _read(folder, options, "oci", shape)
    noise, _ = _read(folder, options, "oni", shape)
    valid = np.isfinite(difference) & (difference != fill)
    valid &= np.isfinite(convolved) & (convolved != fill)
    valid &= np.isfinite(noise) & (noise != noise_fill) & (noise > 0)
    for plane in (difference, convolved, noise):
        plane[~valid] = 0
    used, skipped = _count_stamps(folder, options)
    return Planes(difference, convolved, noise, valid, header, used, skipped)


def kernel_sums(header: fits.Header) -> list[float]:
    """Return the kernel's sum of every region that was fitted; NaN where it is no number."""
    sums = []
    for key in header:
        if key.startswith("KSUM"):
            try:
                sums.append(float(str(header[key])))
            except ValueError:
                sums.append(float("nan"))
    return sums


def _value(options: Options, name: str, default: float) -> np.float32:
    values = options.get(name)
    return np.float32(float(values[0]) if values else default)


def _read(
    folder: Path, options: Options, option: str, shape: tuple[int, int]
) -> tuple[FloatImage, fits.Header]:
    path = folder / options[option][0]
    try:
        with fits.open(path, memmap=False) as hdus:
            plane = np.array(hdus[0].data, dtype=np.float32, order="C")
            header = hdus[0].header.copy()
    except FileNotFoundError:
        raise SubtractionFailed(
            f"HOTPANTS said nothing was wrong but wrote no {path.name}"
        ) from None
    except (OSError, TypeError, ValueError) as error:
        raise SubtractionFailed(
            f"HOTPANTS wrote a {path.name} that is no image: {error}"
        ) from error
    if plane.shape != shape:
        raise SubtractionFailed(f"HOTPANTS wrote a {path.name} of shape {plane.shape}, not {shape}")
    return plane, header


def _count_stamps(folder: Path, options: Options) -> tuple[int, int]:
    """Count the regions in what ``-savexy`` wrote, one a stamp."""
    if "savexy" not in options:
        return 0, 0
    path = folder / options["savexy"][0]
    counts = []
    for file in (path, path.with_name(path.name + ".skipped")):
        try:
            lines = file.read_text(encoding="ascii", errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        counts.append(sum(line.startswith("image;") for line in lines))
    return counts[0], counts[1]
