"""A second simulator of pairs, so that the engines are not tuned to `core.simulate` alone.

Sky, optics, galaxies and noise share no code with it: the PSF is a Gaussian on a Moffat foot with
coma and trefoil that grow towards the corners, star fluxes follow a power law without an upper
end of the detector, galaxies are convolved with the local PSF. Only the definition of the injected
signal-to-noise ratio is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from astropy.table import Table
from scipy.signal import fftconvolve
from scipy.spatial import cKDTree

from core.simulate import Galaxies, NoiseBudget, PairSettings, SimulatedPair

GAIN, READ_NOISE, SKY, TEMPLATE_SKY, DEPTH = 1.5, 5.0, 1000.0, 900.0, 8
FLUX_SCALE = 0.8  # science ADU per template ADU
NORM_SIDE = 301  # pixels, of the stamp that gives a PSF its unit sum


@dataclass(frozen=True)
class OtherPSF:
    """``share`` of a Gaussian, the rest a Moffat of exponent ``beta``, both distorted.

    The squared radius is that of an ellipse, times ``1 + coma cos(t - t1) + trefoil cos 3(t - t3)``
    away from the centre. All distortions change linearly over the field.
    """

    fwhm: float
    shape: tuple[int, int]
    beta: float
    share: float
    terms: np.ndarray  # (7, 3): size, two of ellipticity, coma, trefoil; each 1, u, v

    @classmethod
    def draw(
        cls, rng: np.random.Generator, shape: tuple[int, int], fwhm: float, variation: float
    ) -> OtherPSF:
        terms = (
            rng.normal(size=(7, 3)) * np.array([0.0, 0.02, 0.02, 0.02, 0.02, 0.015, 0.015])[:, None]
        )
        slope = rng.uniform(0, 2 * np.pi)
        terms[0] = 0.0, variation * np.cos(slope), variation * np.sin(slope)
        return cls(fwhm, shape, rng.uniform(2.5, 4.0), rng.uniform(0.1, 0.5), terms)

    def at(
        self, x: float, y: float, size: int = 41, dx: float = 0.0, dy: float = 0.0
    ) -> np.ndarray:
        """Return the PSF at a place, its centre off that of the middle pixel by (dx, dy)."""
        return self._profile(x, y, size, dx, dy) / self._norm(x, y)

    def transfer_at(self, x: float, y: float, n: int = 64) -> np.ndarray:
        """Return the absolute Fourier transform of the PSF on an n by n grid."""
        stamp = np.zeros((n, n))
        stamp[: n - 1, : n - 1] = self.at(x, y, n - 1)
        return np.abs(np.fft.fft2(stamp))

    def _unit(self, x: float, y: float) -> np.ndarray:
        ny, nx = self.shape
        return np.array([1.0, 2 * x / max(nx - 1, 1) - 1, 2 * y / max(ny - 1, 1) - 1])

    @cached_property
    def _norm_fit(self) -> np.ndarray:
        """The sum of the profile over the frame, as a form of second order in (1, u, v)."""
        ny, nx = self.shape
        x, y = (
            g.ravel() for g in np.meshgrid(np.linspace(0, nx - 1, 5), np.linspace(0, ny - 1, 5))
        )
        sums = [self._profile(a, b, NORM_SIDE, 0, 0).sum() for a, b in zip(x, y, strict=True)]
        basis = [
            np.outer(p, p).ravel() for p in (self._unit(a, b) for a, b in zip(x, y, strict=True))
        ]
        fit: np.ndarray = np.linalg.lstsq(np.array(basis), np.array(sums), rcond=None)[0]
        return fit.reshape(3, 3)

    def _norm(self, x: float, y: float) -> float:
        p = self._unit(x, y)
        return float(p @ self._norm_fit @ p)

    def _profile(self, x: float, y: float, size: int, dx: float, dy: float) -> np.ndarray:
        here = self.terms @ self._unit(x, y)
        axis = np.arange(size, dtype=float) - size // 2
        px, py = np.meshgrid(axis - dx, axis - dy)
        width = self.fwhm * (1 + here[0])
        q = ((1 + here[1]) * px**2 + (1 - here[1]) * py**2 + 2 * here[2] * px * py) / width**2
        away = q / (q + 0.25)
        r = np.hypot(px, py) + 1e-9
        cos, sin = px / r, py / r
        lean = here[3] * cos + here[4] * sin
        lean += here[5] * cos * (4 * cos**2 - 3) + here[6] * sin * (3 - 4 * sin**2)
        q = q * (1 + 2 * away * lean)
        moffat = (1 + 4 * (2 ** (1 / self.beta) - 1) * q) ** -self.beta
        profile: np.ndarray = self.share * np.exp(-4 * np.log(2) * q) + (1 - self.share) * moffat
        return profile


@dataclass(frozen=True)
class OtherSky:
    """What to draw; everything random follows from ``seed``."""

    shape: tuple[int, int] = (1024, 1024)
    seed: int = 1
    science_fwhm: float = 3.6
    template_fwhm: float = 2.6
    variation: float = 0.08
    star_density: float = 1500.0  # per 10⁶ pixels
    galaxy_density: float = 200.0
    n_transients: int = 150


def other_pair(sky: OtherSky) -> SimulatedPair:
    """Draw a pair; nothing saturates and nothing is masked."""
    rng = np.random.default_rng(np.random.SeedSequence([sky.seed, 77]))
    ny, nx = sky.shape
    science_psf = OtherPSF.draw(rng, sky.shape, sky.science_fwhm, sky.variation)
    template_psf = OtherPSF.draw(rng, sky.shape, sky.template_fwhm, 0.5 * sky.variation)
    million = ny * nx / 1e6
    n = round(sky.star_density * million)
    x, y = rng.uniform(-20, nx + 19, n), rng.uniform(-20, ny + 19, n)
    # counts N(>F) as F^-0.7 from 300 to a million ADU
    low, high = 300.0**-0.7, 1e6**-0.7
    flux = (high + (low - high) * rng.random(n)) ** (-1 / 0.7)
    galaxies = _galaxies(rng, sky, round(sky.galaxy_density * million))
    galaxy_flux = 10 ** (-0.4 * galaxies.mag)
    v, u = np.mgrid[-1 : 1 : ny * 1j, -1 : 1 : nx * 1j]
    tilt = rng.normal(0, 0.02, 3)
    science = SKY * (1 + tilt[0] * u + tilt[1] * v + tilt[2] * u * v)
    template = np.full(sky.shape, TEMPLATE_SKY)
    for plane, psf, scale in ((science, science_psf, 1.0), (template, template_psf, FLUX_SCALE)):
        _add_stars(plane, psf, x, y, flux / scale)
        _add_galaxies(plane, psf, galaxies, galaxy_flux / scale)
    budget = NoiseBudget(
        _variance(science, 1), _variance(template, DEPTH),
        science_psf, template_psf, FLUX_SCALE, GAIN,  # type: ignore[arg-type]
    )  # fmt: skip
    transients = _transients(rng, sky, x, y, flux, galaxies, budget)
    _add_stars(science, science_psf, transients["x"], transients["y"], transients["flux"])
    nothing = np.zeros(sky.shape, dtype=np.uint16)
    return SimulatedPair(
        settings=PairSettings(
            shape=sky.shape, seed=sky.seed, science_fwhm=sky.science_fwhm,
            template_fwhm=sky.template_fwhm, gain=GAIN, read_noise=READ_NOISE,
            saturation=float("inf"), sky=SKY, template_sky=TEMPLATE_SKY, template_depth=DEPTH,
            bad_columns=0,
        ),
        science=_read(rng, science, 1),
        template=_read(rng, template, DEPTH),
        science_variance=_variance(science, 1),
        template_variance=_variance(template, DEPTH),
        science_mask=nothing,
        template_mask=nothing.copy(),
        science_psf=science_psf,  # type: ignore[arg-type]
        template_psf=template_psf,  # type: ignore[arg-type]
        stars=Table({"x": x, "y": y, "flux": flux, "template_flux": flux / FLUX_SCALE}),
        galaxies=galaxies,
        transients=transients,
        flux_scale=FLUX_SCALE,
    )  # fmt: skip


def _variance(model: np.ndarray, depth: int) -> np.ndarray:
    return (model / (GAIN * depth) + READ_NOISE**2 / (GAIN**2 * depth)).astype(np.float32)


def _read(rng: np.random.Generator, model: np.ndarray, depth: int) -> np.ndarray:
    electrons = GAIN * depth
    counts = rng.poisson(model * electrons) / electrons
    scatter = READ_NOISE / (GAIN * np.sqrt(depth))
    return (counts + rng.normal(0, scatter, model.shape)).astype(np.float32)


def _add_stars(
    plane: np.ndarray, psf: OtherPSF, x: np.ndarray, y: np.ndarray, flux: np.ndarray
) -> None:
    for xi, yi, f in zip(x, y, flux, strict=True):
        cx, cy = round(float(xi)), round(float(yi))
        # until a Moffat of the widest foot has fallen below 0.01 ADU
        half = int(np.clip(psf.fwhm * (f / 0.2) ** 0.2, 12, 140))
        stamp = f * psf.at(xi, yi, 2 * half + 1, xi - cx, yi - cy)
        _add(plane, stamp, cx - half, cy - half)


def _add(plane: np.ndarray, stamp: np.ndarray, x0: int, y0: int) -> None:
    ny, nx = plane.shape
    left, top = max(0, x0), max(0, y0)
    right, bottom = min(nx, x0 + stamp.shape[1]), min(ny, y0 + stamp.shape[0])
    if right > left and bottom > top:
        plane[top:bottom, left:right] += stamp[top - y0 : bottom - y0, left - x0 : right - x0]


def _galaxies(rng: np.random.Generator, sky: OtherSky, n: int) -> Galaxies:
    """Magnitudes of zero point zero; half-light radii of 1 to 10 pixels."""
    ny, nx = sky.shape
    flux = 600.0 * (1 - rng.random(n)) ** -1.0
    return Galaxies(
        x=rng.uniform(0, nx - 1, n), y=rng.uniform(0, ny - 1, n),
        mag=-2.5 * np.log10(np.minimum(flux, 1e6)),
        radius=np.clip(1.2 * (flux / 600) ** 0.3 * np.exp(rng.normal(0, 0.3, n)), 0.8, 10),
        axis_ratio=rng.uniform(0.3, 1, n), angle=rng.uniform(0, np.pi, n),
        bulge=rng.random(n) < 0.5,
    )  # fmt: skip


def _add_galaxies(plane: np.ndarray, psf: OtherPSF, galaxies: Galaxies, flux: np.ndarray) -> None:
    for i, f in enumerate(flux):
        x, y, radius = galaxies.x[i], galaxies.y[i], galaxies.radius[i]
        cx, cy = round(x), round(y)
        half = int(np.clip(8 * radius, 20, 70))
        axis = (np.arange(3 * (2 * half + 1)) - (3 * half + 1)) / 3  # three points a pixel
        px, py = np.meshgrid(axis - (x - cx), axis - (y - cy))
        cos, sin = np.cos(galaxies.angle[i]), np.sin(galaxies.angle[i])
        root = np.sqrt(galaxies.axis_ratio[i])
        along, across = (px * cos + py * sin) * root, (py * cos - px * sin) / root
        r = np.sqrt(along**2 + across**2 + 0.1) / radius
        light = np.exp(-7.67 * r**0.25) if galaxies.bulge[i] else np.exp(-1.68 * r)
        pixels = light.reshape(2 * half + 1, 3, 2 * half + 1, 3).sum(axis=(1, 3))
        wings = 30 if f < 1e4 else 70
        stamp = fftconvolve(pixels * (f / pixels.sum()), psf.at(x, y, 2 * wings + 1))
        _add(plane, stamp, cx - half - wings, cy - half - wings)


def _transients(
    rng: np.random.Generator,
    sky: OtherSky,
    star_x: np.ndarray,
    star_y: np.ndarray,
    star_flux: np.ndarray,
    galaxies: Galaxies,
    budget: NoiseBudget,
) -> Table:
    """Three in ten on galaxies, S/N 5 to 50, at least 20 pixels from each other."""
    ny, nx = sky.shape
    bright = star_flux > 3000
    stars = cKDTree(np.column_stack([star_x[bright], star_y[bright]]))
    rows: list[tuple[float, float, float, float, bool]] = []
    hosts = iter(rng.permutation(np.flatnonzero(galaxies.mag < -2.5 * np.log10(1500.0))))
    for _ in range(20 * sky.n_transients):
        if len(rows) == sky.n_transients:
            break
        host = next(hosts, None) if len(rows) < 0.3 * sky.n_transients else None
        x, y = rng.uniform(32, nx - 33), rng.uniform(32, ny - 33)
        if host is not None:
            offset = rng.normal(0, 0.7 * galaxies.radius[host], 2)
            x, y = galaxies.x[host] + offset[0], galaxies.y[host] + offset[1]
        inside = 32 <= x <= nx - 33 and 32 <= y <= ny - 33
        apart = all(np.hypot(x - row[0], y - row[1]) > 20 for row in rows)
        if inside and apart and stars.query([x, y])[0] > 10:
            snr = rng.uniform(5, 50)
            rows.append((x, y, budget.flux_for(x, y, snr), snr, host is not None))
    return Table(rows=rows, names=("x", "y", "flux", "snr", "on_galaxy"))
