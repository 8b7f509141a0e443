"""What is in the simulated sky: stars with power-law counts, and galaxies."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stars:
    """Point sources; positions in 0-based pixels, one entry a star, shape (n,)."""

    x: FloatArray
    y: FloatArray
    mag: FloatArray


@dataclass(frozen=True)
class Galaxies:
    """Galaxies; positions in 0-based pixels, one entry a galaxy, shape (n,).

    Attributes
    ----------
    x, y : ndarray of float64
        Centres.
    mag : ndarray of float64
        Total magnitudes.
    radius : ndarray of float64
        Half-light radius along the geometric mean axis, pixels.
    axis_ratio : ndarray of float64
        Minor over major axis.
    angle : ndarray of float64
        Position angle of the major axis from +x towards +y, radians.
    bulge : ndarray of bool
        True for a de Vaucouleurs profile, False for an exponential disc.
    """

    x: FloatArray
    y: FloatArray
    mag: FloatArray
    radius: FloatArray
    axis_ratio: FloatArray
    angle: FloatArray
    bulge: npt.NDArray[np.bool_]

    def covariance(self) -> FloatArray:
        """Return the shape matrix (xx, xy, yy) in pixels², of determinant radius⁴, (n, 3)."""
        major = self.radius**2 / self.axis_ratio
        minor = self.radius**2 * self.axis_ratio
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.stack(
            [
                major * cos**2 + minor * sin**2,
                (major - minor) * cos * sin,
                major * sin**2 + minor * cos**2,
            ],
            axis=-1,
        )

    def moved(self, x: FloatArray, y: FloatArray, rotation: float = 0.0) -> Galaxies:
        """Return the same galaxies at other pixels, turned by ``rotation`` radians."""
        return replace(self, x=x, y=y, angle=self.angle + rotation)


def power_law_magnitudes(
    rng: np.random.Generator, n: int, bright: float, faint: float, slope: float
) -> FloatArray:
    """Draw magnitudes from counts ``dN/dm ∝ 10^(slope m)`` between two limits."""
    low, high = 10.0 ** (slope * bright), 10.0 ** (slope * faint)
    return np.log10(low + (high - low) * rng.random(n)) / slope


def draw_stars(
    rng: np.random.Generator,
    shape: tuple[int, int],
    n: int,
    bright: float = 10.5,
    faint: float = 22.0,
    slope: float = 0.25,
    margin: float = 30.0,
) -> Stars:
    """Draw ``n`` stars over the frame, and the same density over ``margin`` pixels around it."""
    ny, nx = shape
    total = round(n * (ny + 2 * margin) * (nx + 2 * margin) / (ny * nx))
    return Stars(
        x=rng.uniform(-0.5 - margin, nx - 0.5 + margin, total),
        y=rng.uniform(-0.5 - margin, ny - 0.5 + margin, total),
        mag=power_law_magnitudes(rng, total, bright, faint, slope),
    )


def draw_galaxies(
    rng: np.random.Generator,
    shape: tuple[int, int],
    n: int,
    bright: float = 15.5,
    faint: float = 21.5,
    slope: float = 0.35,
    radius_at_18: float = 4.0,
    margin: float = 30.0,
) -> Galaxies:
    """Draw ``n`` galaxies over the frame, and the same density over the margin around it.

    The half-light radius shrinks with magnitude as ``radius_at_18 · 10^(-0.12 (m - 18))`` with a
    scatter of 0.15 dex; four in ten are de Vaucouleurs bulges.
    """
    ny, nx = shape
    total = round(n * (ny + 2 * margin) * (nx + 2 * margin) / (ny * nx))
    mag = power_law_magnitudes(rng, total, bright, faint, slope)
    radius = radius_at_18 * 10.0 ** (-0.12 * (mag - 18.0) + rng.normal(0.0, 0.15, total))
    return Galaxies(
        x=rng.uniform(-0.5 - margin, nx - 0.5 + margin, total),
        y=rng.uniform(-0.5 - margin, ny - 0.5 + margin, total),
        mag=mag,
        radius=np.clip(radius, 0.6, 12.0),
        axis_ratio=rng.uniform(0.35, 1.0, total),
        angle=rng.uniform(0.0, np.pi, total),
        bulge=rng.random(total) < 0.4,
    )


def join_galaxies(first: Galaxies, second: Galaxies) -> Galaxies:
    """Return one list with the galaxies of both."""
    return Galaxies(
        *(
            np.concatenate([getattr(first, name), getattr(second, name)])
            for name in ("x", "y", "mag", "radius", "axis_ratio", "angle", "bulge")
        )
    )
