"""From the light that arrives to the counts that are read: noise, saturation, defects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.image import FloatImage, MaskBit, MaskImage
from core.simulation.psf import FloatArray


@dataclass(frozen=True)
class BadColumn:
    """A defect of the detector: rows ``first`` to ``last`` of a column read ``level`` ADU."""

    column: int
    first: int
    last: int
    level: float


@dataclass(frozen=True)
class Detector:
    """A detector, or the mean of ``frames`` of its exposures.

    Attributes
    ----------
    gain : float
        Electrons per ADU.
    read_noise : float
        Electrons, per frame.
    saturation : float
        ADU at which a pixel is full.
    frames : int
        Number of exposures averaged; 1 for a single exposure.
    bad_columns : tuple of BadColumn
        Its defects.
    """

    gain: float = 2.0
    read_noise: float = 6.0
    saturation: float = 50_000.0
    frames: int = 1
    bad_columns: tuple[BadColumn, ...] = ()

    def variance(self, model: FloatArray) -> FloatImage:
        """Return the true variance, ADU², where ``model`` ADU are expected, sky included."""
        poisson = np.maximum(model, 0.0) / (self.gain * self.frames)
        return (poisson + self.read_noise**2 / (self.gain**2 * self.frames)).astype(np.float32)

    def model(self, variance: FloatImage) -> FloatArray:
        """Return the expected counts, ADU, that belong to a true variance."""
        floor = self.read_noise**2 / (self.gain**2 * self.frames)
        return (variance.astype(float) - floor) * (self.gain * self.frames)

    def saturated(self, model: FloatArray, sky: float) -> npt.NDArray[np.bool_]:
        """Return where the expected light fills the pixels, charge bled along columns included.

        The charge beyond saturation of every saturated run of a column fills the empty pixels
        above and below it, half each way.
        """
        full = model >= self.saturation
        if not full.any():
            return full
        bled = full.copy()
        labels, n = ndimage.label(full)
        room = max(self.saturation - sky, 1.0)
        for i, box in enumerate(ndimage.find_objects(labels, n), start=1):
            rows, columns = box
            inside = labels[box] == i
            excess = np.where(inside, model[box] - self.saturation, 0.0).sum(axis=0)
            for offset, column in enumerate(range(columns.start, columns.stop)):
                run = np.flatnonzero(inside[:, offset]) + rows.start
                reach = min(int(0.5 * excess[offset] / room), 300)
                bled[max(run[0] - reach, 0) : run[-1] + reach + 1, column] = True
        return bled

    def read(
        self,
        rng: np.random.Generator,
        model: FloatArray,
        saturated: npt.NDArray[np.bool_],
        cosmic_rays: int = 0,
    ) -> tuple[FloatImage, MaskImage]:
        """Draw one reading of the expected light.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of the noise.
        model : ndarray of float64, shape (ny, nx)
            Expected ADU, sky included.
        saturated : ndarray of bool, shape (ny, nx)
            Where the pixels are full (see `saturated`).
        cosmic_rays : int
            How many particle tracks to add.

        Returns
        -------
        data : ndarray of float32, shape (ny, nx)
            ADU.
        mask : ndarray of uint16, shape (ny, nx)
            `MaskBit` flags of saturated pixels, bad columns and cosmic rays.
        """
        electrons = self.gain * self.frames
        scatter = self.read_noise / (self.gain * np.sqrt(self.frames))
        data = np.empty(model.shape, dtype=np.float32)
        mask = np.zeros(model.shape, dtype=np.uint16)
        for first in range(0, model.shape[0], 256):
            rows = slice(first, first + 256)
            block = rng.poisson(np.maximum(model[rows], 0.0) * electrons) / electrons
            data[rows] = block + rng.normal(0.0, scatter, block.shape)
        for track, charge in cosmic_ray_tracks(rng, model.shape, cosmic_rays):
            data[track] += np.float32(charge / self.gain)
            mask[track] |= np.uint16(MaskBit.COSMIC_RAY)
        full = saturated | (data >= self.saturation)
        data[full] = self.saturation
        mask[full] |= np.uint16(MaskBit.SATURATED)
        for bad in self.bad_columns:
            data[bad.first : bad.last + 1, bad.column] = bad.level
            mask[bad.first : bad.last + 1, bad.column] |= np.uint16(MaskBit.BAD)
        return data, mask


@dataclass(frozen=True)
class SkyLevel:
    """The sky background: a level and a plane, ADU; slopes are the change over the whole frame."""

    level: float
    slope_x: float = 0.0
    slope_y: float = 0.0

    def image(self, shape: tuple[int, int]) -> FloatArray:
        """Return the sky, float64, shape (ny, nx)."""
        ny, nx = shape
        x = np.linspace(-0.5, 0.5, nx)[None, :]
        y = np.linspace(-0.5, 0.5, ny)[:, None]
        return self.level + self.slope_x * x + self.slope_y * y


def draw_bad_columns(
    rng: np.random.Generator, shape: tuple[int, int], n: int
) -> tuple[BadColumn, ...]:
    """Draw ``n`` bad columns: half of them whole, half partial; some dead, some hot."""
    ny, nx = shape
    columns = []
    for _ in range(n):
        whole = rng.random() < 0.5
        columns.append(
            BadColumn(
                column=int(rng.integers(0, nx)),
                first=0 if whole else int(rng.integers(0, ny // 2)),
                last=ny - 1,
                level=0.0 if rng.random() < 0.6 else float(rng.uniform(3e3, 3e4)),
            )
        )
    return tuple(columns)


def cosmic_ray_tracks(
    rng: np.random.Generator, shape: tuple[int, int], n: int
) -> list[tuple[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]], float]]:
    """Draw ``n`` straight particle tracks of 1 to 15 pixels with their charge per pixel (e-)."""
    ny, nx = shape
    tracks = []
    for _ in range(n):
        length = min(1.0 + rng.exponential(4.0), 15.0)
        angle = rng.uniform(0.0, np.pi)
        along = np.arange(0.0, length, 0.5)
        x = np.rint(rng.uniform(0, nx - 1) + along * np.cos(angle)).astype(np.intp)
        y = np.rint(rng.uniform(0, ny - 1) + along * np.sin(angle)).astype(np.intp)
        keep = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
        pixels = np.unique(np.stack([y[keep], x[keep]]), axis=1)
        tracks.append(((pixels[0], pixels[1]), float(rng.uniform(500.0, 8000.0))))
    return tracks
