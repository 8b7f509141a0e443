"""Weights with which several images become one without seams.

An image counts with the inverse variance of its *sky*: weights that held the photon noise of the
sources would give stars another flux than the sky around them. Towards the edge of what it covers
its weight falls to nothing over `FEATHER` pixels, so that what is left of a difference between two
images (of seeing, of background) is spread out and not a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from core.image import FloatImage, MaskBit

if TYPE_CHECKING:
    from core.templates.mosaic.placing import Placed

FEATHER = (
    64.0  # pixels; below the overlaps of Pan-STARRS cells (240) and Legacy Survey bricks (165)
)

_BLOCK = 64  # pixels over which the variance of the sky is taken
_COARSE = 8  # pixels of the map on which the distance from the edge is measured
_LEAST_TAPER = 1e-3  # an image's very edge counts where nothing else is there


@dataclass(frozen=True)
class SeamlessWeights:
    """The weights of an image's pixels in a mosaic.

    Attributes
    ----------
    taper : ndarray of float32
        One value for 8 x 8 pixels: 1 inside, towards 0 at the edge of what the image covers.
    sky : ndarray of float32
        One value for 64 x 64 pixels: variance of the sky at the common zero point.
    width : int
        Pixels of the image in a row.
    """

    taper: FloatImage
    sky: FloatImage
    width: int

    @classmethod
    def of(cls, part: Placed, shape: tuple[int, int]) -> SeamlessWeights:
        """Measure them.

        Parameters
        ----------
        part : core.templates.mosaic.placing.Placed
            The image.
        shape : tuple of int
            (ny, nx) of the whole mosaic.
        """
        image = part.image
        assert image.variance is not None
        empty = (image.mask & MaskBit.NO_DATA) != 0
        sky = _block_medians(image.variance, empty) * np.float32(part.factor**2)
        share = np.clip(_distance_from_edge(empty, part, shape) / FEATHER, 0, 1)
        taper = np.maximum(share * share * (3 - 2 * share), _LEAST_TAPER)
        return cls(taper, sky, image.shape[1])

    def on_rows(self, rows: slice) -> FloatImage:
        """Return the weights of some rows of the image; flags are not looked at."""
        taper = _upsampled(self.taper, rows, self.width, _COARSE)
        return taper / _upsampled(self.sky, rows, self.width, _BLOCK)


def _block_medians(variance: FloatImage, empty: npt.NDArray[np.bool_]) -> FloatImage:
    """Return the median variance in blocks; empty blocks take the median of all."""
    values = np.where(empty | ~(variance > 0), np.float32(np.nan), variance)
    ny, nx = (max(1, -(-length // _BLOCK)) for length in variance.shape)
    medians = np.full((ny, nx), np.nan, np.float32)
    for j in range(ny):
        for i in range(nx):
            block = values[
                j * _BLOCK : (j + 1) * _BLOCK : 2, i * _BLOCK : (i + 1) * _BLOCK : 2
            ].ravel()
            block = block[np.isfinite(block)]
            if block.size:
                medians[j, i] = np.median(block)
    known = medians[np.isfinite(medians)]
    medians[~np.isfinite(medians)] = np.median(known) if known.size else 1.0
    return medians


def _distance_from_edge(
    empty: npt.NDArray[np.bool_], part: Placed, shape: tuple[int, int]
) -> FloatImage:
    """Return how far each coarse block lies from where the image has no data, pixels.

    Single missing pixels do not count; nor does the edge of the grid, behind which the image goes
    on.
    """
    ny, nx = empty.shape
    padded = np.pad(empty, ((0, -ny % _COARSE), (0, -nx % _COARSE)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // _COARSE, _COARSE, -1, _COARSE)
    there = blocks.mean(axis=(1, 3)) < 0.5
    reach = int(np.ceil(FEATHER / _COARSE)) + 1
    goes_on = (
        (part.rows.start == 0, part.rows.stop == shape[0]),
        (part.columns.start == 0, part.columns.stop == shape[1]),
    )
    for axis in (0, 1):
        for end in (0, 1):
            width = [(0, 0), (0, 0)]
            width[axis] = (reach, 0) if end == 0 else (0, reach)
            if goes_on[axis][end]:
                there = np.pad(there, width, mode="edge")
            else:
                there = np.pad(there, width, constant_values=False)
    distance = distance_transform_edt(there) if not there.all() else np.full(there.shape, np.inf)
    inner = distance[reach:-reach, reach:-reach]
    # From the middle of a block to the edge of the nearest empty one.
    return np.asarray((inner - 0.5) * _COARSE, dtype=np.float32)


def _upsampled(blocks: FloatImage, rows: slice, width: int, step: int) -> FloatImage:
    """Return block values interpolated linearly to the pixels of some rows."""
    for axis, span in enumerate((rows, slice(0, width))):
        places = (np.arange(span.start, span.stop) + 0.5) / step - 0.5
        places = np.clip(places, 0, blocks.shape[axis] - 1)
        low = np.minimum(places.astype(int), max(blocks.shape[axis] - 2, 0))
        high = np.minimum(low + 1, blocks.shape[axis] - 1)
        share = (places - low).astype(np.float32)
        share = share[:, None] if axis == 0 else share[None, :]
        below, above = np.take(blocks, low, axis), np.take(blocks, high, axis)
        blocks = below + share * (above - below)
    return blocks
