"""A worse image of the same sky: blurred, displaced, dimmed, with a brighter sky and new noise.

The blur is a mixture of four elliptical Moffat kernels whose shares change over the field, each
with its own sub-pixel displacement, so that neither the seeing nor the astrometry of the copy is
a constant. The original's own noise is in the copy as well, blurred, and would cancel in the
difference; so it has to be small against the noise that is added. `hidden_share` is the part of
the copy's variance that it makes up, and is to be kept below 5 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import fft

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MoffatBlur:
    """One elliptical, displaced Moffat kernel."""

    fwhm: float
    elongation: float
    angle: float  # radians
    dx: float
    dy: float
    beta: float = 3.5

    def kernel(self, half: int) -> Float64:
        """Return the kernel, averaged over 7x7 points a pixel; unit sum."""
        fine = (np.arange(7) - 3) / 7
        grid = (np.arange(-half, half + 1)[:, None] + fine).ravel()
        x, y = np.meshgrid(grid - self.dx, grid - self.dy)
        along = x * np.cos(self.angle) + y * np.sin(self.angle)
        across = -x * np.sin(self.angle) + y * np.cos(self.angle)
        stretch = np.sqrt(self.elongation)
        radius2 = (along / stretch) ** 2 + (across * stretch) ** 2
        scale = 0.5 * self.fwhm / np.sqrt(2 ** (1 / self.beta) - 1)
        values = (1 + radius2 / scale**2) ** -self.beta
        side = 2 * half + 1
        kernel = values.reshape(side, 7, side, 7).sum(axis=(1, 3))
        return kernel / kernel.sum()


@dataclass(frozen=True)
class Degradation:
    """How the copy differs from the original.

    Attributes
    ----------
    blurs : tuple of MoffatBlur
        Mixed over the field (`shares`).
    flux_scale : float
        ADU of the copy for one of the original.
    gain : float
        Electrons per ADU of the copy.
    read_noise : float
        Electrons.
    sky : float
        ADU at the centre.
    sky_slope : tuple of float
        Relative change of the sky from the centre to the right and to the upper edge.
    half : int
        Half-size of the blur kernels, pixels.
    """

    blurs: tuple[MoffatBlur, ...] = (
        MoffatBlur(2.1, 1.04, 0.3, 0.37, -0.21),
        MoffatBlur(2.5, 1.10, 0.8, 0.43, -0.26),
        MoffatBlur(2.8, 1.06, 1.4, 0.33, -0.31),
        MoffatBlur(3.2, 1.12, 2.2, 0.29, -0.20),
    )
    flux_scale: float = 0.4
    gain: float = 1.6
    read_noise: float = 6.0
    sky: float = 260.0
    sky_slope: tuple[float, float] = (0.08, -0.05)
    half: int = 15

    def shares(self, x: npt.ArrayLike, y: npt.ArrayLike, shape: tuple[int, int]) -> list[Float64]:
        """Return the share of each blur at places; they sum to one."""
        u = np.asarray(x, dtype=np.float64) / (shape[1] - 1)
        v = np.asarray(y, dtype=np.float64) / (shape[0] - 1)
        t = np.clip(0.55 * u + 0.35 * v + 0.25 * (u - 0.5) * (v - 0.3) + 0.05, 0, 1)
        position = t * (len(self.blurs) - 1)
        return [np.clip(1 - np.abs(position - i), 0, 1) for i in range(len(self.blurs))]

    def kernel_at(self, x: float, y: float, shape: tuple[int, int]) -> Float64:
        """Return the blur at a place; unit sum."""
        shares = self.shares(x, y, shape)
        return sum(
            float(share) * blur.kernel(self.half)
            for share, blur in zip(shares, self.blurs, strict=True)
        )  # type: ignore[return-value]

    def mean_displacement(self) -> tuple[float, float]:
        """Return the mean (dx, dy) of the blurs, pixels: what a WCS can take up."""
        return (
            float(np.mean([blur.dx for blur in self.blurs])),
            float(np.mean([blur.dy for blur in self.blurs])),
        )

    def displacement_at(self, x: float, y: float, shape: tuple[int, int]) -> tuple[float, float]:
        """Return the (dx, dy) by which a source at a place is moved."""
        kernel = self.kernel_at(x, y, shape)
        offsets = np.arange(-self.half, self.half + 1)
        return float((kernel.sum(axis=0) * offsets).sum()), float(
            (kernel.sum(axis=1) * offsets).sum()
        )


#: Hardly any blur: the copy is as undersampled as the original (2.2 to 2.5 pixels FWHM).
SHARP = Degradation(
    blurs=(
        MoffatBlur(1.0, 1.04, 0.3, 0.37, -0.21),
        MoffatBlur(1.2, 1.10, 0.8, 0.43, -0.26),
        MoffatBlur(1.4, 1.06, 1.4, 0.33, -0.31),
        MoffatBlur(1.6, 1.12, 2.2, 0.29, -0.20),
    )
)


@dataclass(frozen=True)
class Degraded:
    """The copy and its true noise.

    Attributes
    ----------
    data : ndarray of float32, shape (ny, nx)
        ADU, sky included.
    variance : ndarray of float32, shape (ny, nx)
        Of the noise that was added, ADU².
    hidden_share : float
        Variance of the blurred noise of the original over the whole, on blank sky.
    """

    data: npt.NDArray[np.float32]
    variance: npt.NDArray[np.float32]
    hidden_share: float
    how: Degradation = field(default_factory=Degradation)


def blur(data: npt.NDArray[np.float32], how: Degradation) -> npt.NDArray[np.float32]:
    """Apply the spatially varying blur, edges reflected."""
    ny, nx = data.shape
    half = how.half
    padded = np.pad(data, half, mode="reflect")
    shape = [fft.next_fast_len(n + 2 * half, real=True) for n in padded.shape]
    transform = fft.rfft2(padded, shape)
    y, x = np.mgrid[0:ny, 0:nx]
    result = np.zeros(data.shape, dtype=np.float32)
    for share, one in zip(how.shares(x, y, (ny, nx)), how.blurs, strict=True):
        kernel = fft.rfft2(one.kernel(half).astype(np.float32), shape)
        blurred = fft.irfft2(transform * kernel, shape)[2 * half : 2 * half + ny]
        result += share.astype(np.float32) * blurred[:, 2 * half : 2 * half + nx]
    return result


def degrade(
    data: npt.NDArray[np.float32], rms: float, how: Degradation, rng: np.random.Generator
) -> Degraded:
    """Make the copy.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        The original without its sky, ADU.
    rms : float
        Its noise on blank sky, ADU.
    how : Degradation
        What to do.
    rng : numpy.random.Generator
        For the noise.
    """
    ny, nx = data.shape
    signal = how.flux_scale * blur(data, how)
    u = np.linspace(-1, 1, nx, dtype=np.float32)[None, :]
    v = np.linspace(-1, 1, ny, dtype=np.float32)[:, None]
    sky = np.float32(how.sky) * (1 + how.sky_slope[0] * u + how.sky_slope[1] * v)
    electrons = np.maximum(signal + sky, 0) * how.gain
    noisy = rng.poisson(electrons) + rng.normal(0, how.read_noise, data.shape)
    variance = ((electrons + how.read_noise**2) / how.gain**2).astype(np.float32)
    power = sum(float((one.kernel(how.half) ** 2).sum()) for one in how.blurs) / len(how.blurs)
    hidden = (how.flux_scale * rms) ** 2
    return Degraded(
        (noisy / how.gain).astype(np.float32),
        variance,
        hidden * max(power, 0.5) / float(np.median(variance)),
        how,
    )
