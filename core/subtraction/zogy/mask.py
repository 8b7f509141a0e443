"""What is masked on a proper difference: bad pixels, as far as they are felt."""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy import ndimage

from core.image import FloatImage, MaskBit, MaskImage
from core.subtraction.mask_growth import grow
from core.subtraction.zogy.images import KnownImage
from core.subtraction.zogy.tiles import TileGrid, TileInputs, model_of
from core.subtraction.zogy.transform import tile_kernels

Bool = npt.NDArray[np.bool_]
Box = tuple[slice, slice]
Float64 = npt.NDArray[np.float64]
BRIGHT_FILL = 20.0  # sigma
CALM_RINGS = 3
LOUD = 4.0  # sigma
NEAR = 24  # pixels, that are looked at first
PIECE = 64  # pixels
FELT = 0.02  # of a kernel's squared sum


def reach_of(inputs: TileInputs, grid: TileGrid) -> int:
    """Return how far a pixel that was filled is felt.

    It is the half-size, in pixels, of the box that holds both kernels of D at the centre of the
    frame, but for a part that noise hides.
    """
    tiles = list(grid)
    number = (grid.tiles[0] // 2) * grid.tiles[1] + grid.tiles[1] // 2
    model = model_of(inputs, grid, tiles[number], divmod(number, grid.tiles[1]))
    side = int(scipy.fft.next_fast_len(2 * model.science_psf.shape[1] + 1, real=True))
    squared = tile_kernels(model, (side, side))[:2] ** 2
    away = np.abs(np.fft.fftfreq(side) * side)
    distance = np.maximum(away[:, None], away[None, :])
    for half in range(1, side // 2):
        outside = (squared * (distance > half)).sum(axis=(1, 2))
        if outside.sum() < FELT * squared.sum():
            return half
    return side // 2


def joined_mask(science: KnownImage, template: KnownImage, reach: int) -> MaskImage:
    """Join both masks, each grown by the kernels, and saturated cores by the seeing."""
    mask = science.mask.copy()
    fwhm = max(science.psf.fwhm, template.psf.fwhm)
    for image, bit in ((science, MaskBit.BAD), (template, MaskBit.TEMPLATE_BAD)):
        _flag(mask, grow(image.bad, reach, reach), bit)
        wide = max(reach, int(np.ceil(fwhm)))
        _flag(mask, grow(_has(image.mask, MaskBit.SATURATED), wide, wide), bit)
    _flag(mask, _has(template.mask, MaskBit.SATURATED), MaskBit.TEMPLATE_SATURATED)
    _flag(mask, _has(template.mask, MaskBit.NO_DATA), MaskBit.TEMPLATE_NO_DATA)
    edge = max(reach, int(np.ceil(2.5 * fwhm)))
    for side in (np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]):
        mask[side] |= np.uint16(MaskBit.EDGE)
    return mask


def _has(mask: MaskImage, bit: MaskBit) -> Bool:
    return np.asarray(_with_bit(mask.reshape(-1), np.uint16(bit))).reshape(mask.shape)


@numba.njit(parallel=True, cache=True)
def _with_bit(mask, bit):  # type: ignore[no-untyped-def] # pragma: no cover
    out = np.empty(mask.shape, dtype=np.bool_)
    for i in numba.prange(mask.size):
        out[i] = (mask[i] & bit) != 0
    return out


def _flag(mask: MaskImage, where: Bool, bit: MaskBit) -> None:
    _set_bit(mask.reshape(-1), where.reshape(-1), np.uint16(bit))


@numba.njit(parallel=True, cache=True)
def _set_bit(mask, where, bit):  # type: ignore[no-untyped-def] # pragma: no cover
    for i in numba.prange(mask.size):
        if where[i]:
            mask[i] |= bit


def holes_of(science: KnownImage, template: KnownImage) -> Bool:
    """Return where bright pixels are missing: a hundredth of a star's core exceeds any threshold.

    Pixels that are bad in both images, saturated ones, bright ones that were filled, and bright
    ones on the edge, behind which the rest of a star lies.
    """
    holes = science.bad & template.bad
    edge = np.zeros_like(holes)
    edge[[0, -1], :] = edge[:, [0, -1]] = True
    for image in (science, template):
        rows, columns = np.nonzero(image.bad | edge)
        level = BRIGHT_FILL * np.sqrt(image.typical_variance())
        bright = np.abs(image.data[rows, columns]) > level
        bright |= _has(image.mask[rows, columns], MaskBit.SATURATED)
        holes[rows[bright], columns[bright]] = True
    return holes


def disturbed(
    holes: Bool,
    flux: FloatImage,
    variance: FloatImage,
    mask: MaskImage,
    *,
    reach: int,
    step: int,
) -> Bool:
    """Find how far the holes that nothing fills well disturb the difference.

    Around each piece of such a hole, rings of ``step`` pixels are added as long as the matched
    filter scatters by more than 1.5 times what it does in the frame, or is off by 0.7 sigma, or has
    more than one pixel in a hundred beyond 4 sigma, until some rings in a row are calm. Pieces are
    short, so that what a bleeding column disturbs at its star is not masked along all of it, nor
    every source beside it. A source that such a mask would cut is masked whole: half of it would
    be found in a wrong place. What is wrong everywhere, as in a crowded field, is left to the noise
    model and to the verdict.

    Parameters
    ----------
    holes : ndarray of bool, shape (ny, nx)
        Bad pixels that are not made good by filling them.
    flux, variance : ndarray of float32, shape (ny, nx)
        Flux of a point source at every pixel, and its variance.
    mask : ndarray of uint16, shape (ny, nx)
        Flagged pixels are not looked at.
    reach : int
        The farthest to go, pixels.
    step : int
        Width of a ring, pixels.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
    """
    out = np.zeros_like(holes)
    everywhere, scatter = _typical(flux, variance, mask)
    for piece in _pieces(holes):
        labels, n = ndimage.label(holes[piece], structure=np.ones((3, 3)))
        for number, box in enumerate(ndimage.find_objects(labels, n), start=1):
            own = labels[box] == number
            place = (
                slice(piece[0].start + box[0].start, piece[0].start + box[0].stop),
                slice(piece[1].start + box[1].start, piece[1].start + box[1].stop),
            )
            for far in (min(NEAR, reach), reach):
                window, inner = _window(place, far, holes.shape)
                away = np.ones_like(holes[window])
                away[inner] = ~own
                distance = ndimage.distance_transform_edt(away)
                usable = mask[window] == 0
                pull = (flux[window] / np.sqrt(variance[window]) - everywhere) / scatter
                limit, calm = _rings(pull, usable, distance, far, step)
                if calm:
                    break
            within = distance <= limit
            loud = (np.abs(pull) > LOUD) & usable
            if (within & loud).any():
                within |= ndimage.binary_propagation(within & loud, mask=loud)
            out[window] |= within
    return out


def _pieces(holes: Bool) -> Iterator[Box]:
    """Cut a frame into pieces of ``PIECE`` pixels a side, and return those that have a hole."""
    rows, columns = np.nonzero(holes)
    for y, x in np.unique(np.stack([rows // PIECE, columns // PIECE], axis=1), axis=0):
        yield slice(y * PIECE, (y + 1) * PIECE), slice(x * PIECE, (x + 1) * PIECE)


def _window(piece: Box, reach: int, shape: tuple[int, int]) -> tuple[Box, Box]:
    """Return the surroundings of a piece, and the piece within them."""
    window = tuple(
        slice(max(0, side.start - reach), min(length, side.stop + reach))
        for side, length in zip(piece, shape, strict=True)
    )
    inner = tuple(
        slice(side.start - around.start, side.stop - around.start)
        for side, around in zip(piece, window, strict=True)
    )
    return (window[0], window[1]), (inner[0], inner[1])


def _rings(
    pull: npt.NDArray[np.floating], usable: Bool, distance: Float64, reach: int, step: int
) -> tuple[int, bool]:
    """Return how far the disturbance goes, and whether its end was seen."""
    limit = outer = calm_rings = 0
    while outer < reach and calm_rings < CALM_RINGS:
        values = pull[(distance > outer) & (distance <= outer + step) & usable]
        outer += step
        if values.size < 20:
            continue
        low, middle, high = np.percentile(values, [15.8655, 50, 84.1345])
        calm = 0.5 * (high - low) < 1.5 and abs(middle) < 0.7
        if calm and np.mean(np.abs(values) > LOUD) <= 0.01:
            calm_rings += 1
        else:
            limit, calm_rings = outer, 0
    return limit, calm_rings == CALM_RINGS


def _typical(flux: FloatImage, variance: FloatImage, mask: MaskImage) -> tuple[float, float]:
    """Median and robust scatter of the matched filter over the frame; at least what theory says."""
    step = max(1, int(np.sqrt(flux.size / 1e6)))
    sample = np.s_[::step, ::step]
    usable = mask[sample] == 0
    values = flux[sample][usable] / np.sqrt(variance[sample][usable])
    if values.size < 500:
        return 0.0, 1.0
    low, middle, high = np.percentile(values, [15.8655, 50, 84.1345])
    return float(middle), max(0.5 * float(high - low), 1.0)
