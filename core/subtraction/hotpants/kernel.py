"""The kernel that HOTPANTS found, read from the table that it writes.

The basis is that of Alard & Lupton 1998 (ApJ 503, 325) with the arrangement of Alard 2000 (A&AS
144, 363) that keeps the kernel's sum constant: Gaussians times ``u^i v^j``, those of even degree
in both normalised to unit sum and, but for the first, diminished by the first. The order of the
table's rows is not documented; it was found by convolving points with known tables, and the engine
holds every kernel against the convolved image before it relies on it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from core.polynomials import terms

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RegionKernel:
    """The kernel of one rectangle of the frame.

    Attributes
    ----------
    x0, x1, y0, y1 : int
        The rectangle, 0-based, ends excluded.
    window : tuple of int
        (x0, x1, y0, y1) of what the polynomials are scaled to: the rectangle and a margin, cut at
        the frame's edges.
    coefficients : ndarray of float64, shape (n_terms, ky, kx)
        Convolution kernel of every polynomial term (`core.polynomials`) over the window.
    order : int
        Order of the polynomial.
    total : float
        The kernel's sum, the same all over the region.
    convolved : str
        ``template`` or ``science``: which image it is applied to.
    """

    x0: int
    x1: int
    y0: int
    y1: int
    window: tuple[int, int, int, int]
    coefficients: Float64
    order: int
    total: float
    convolved: str

    @property
    def window_shape(self) -> tuple[int, int]:
        """(ny, nx) of the window."""
        x0, x1, y0, y1 = self.window
        return y1 - y0, x1 - x0

    def at(self, x: float, y: float) -> Float64:
        """Return the kernel at a pixel of the frame, shape (ky, kx)."""
        weight = terms(self.order, x - self.window[0], y - self.window[2], self.window_shape)
        kernel: Float64 = np.tensordot(weight, self.coefficients, axes=1)
        return kernel


@dataclass(frozen=True)
class HotpantsKernel:
    """The kernels of all regions.

    Attributes
    ----------
    regions : tuple of RegionKernel
    shape : tuple of int
        (ny, nx) of the frame.
    """

    regions: tuple[RegionKernel, ...]
    shape: tuple[int, int]

    @property
    def half(self) -> int:
        """Half-width of the kernel, pixels."""
        return int(self.regions[0].coefficients.shape[-1] // 2)

    @property
    def convolved(self) -> str:
        """Which image was convolved: ``template`` or ``science``; ``mixed`` if regions differ."""
        directions = {region.convolved for region in self.regions}
        return directions.pop() if len(directions) == 1 else "mixed"

    def region_at(self, x: float, y: float) -> RegionKernel:
        """Return the region that holds a pixel; the nearest one where it lies outside all."""
        return min(
            self.regions,
            key=lambda r: max(r.x0 - x, x - (r.x1 - 1), 0) + max(r.y0 - y, y - (r.y1 - 1), 0),
        )

    def at(self, x: float, y: float) -> Float64:
        """Return the kernel at a pixel (0-based) of the frame, shape (ky, kx)."""
        return self.region_at(x, y).at(x, y)

    @property
    def sums(self) -> Float64:
        """The kernel's sum in every region, shape (n_regions,)."""
        return np.array([region.total for region in self.regions])


def read_kernel(
    path: str, shape: tuple[int, int], kernel_half: int, substamp_half: int
) -> HotpantsKernel:
    """Read the file of ``-oki``.

    Parameters
    ----------
    path : str
        The file.
    shape : tuple of int
        (ny, nx) of the frame.
    kernel_half, substamp_half : int
        ``-r`` and ``-rss`` of the run: their sum is the margin of a region.

    Raises
    ------
    ValueError
        If there is no table, or its length is not that of the basis and the orders in its header.
    """
    with fits.open(path) as hdus:
        table = next((hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)), None)
        if table is None:
            raise ValueError("the kernel file has no table")
        basis = _basis(table.header)
        order = int(table.header["CKORDER"])
        regions = [
            _region(hdus[0].header, number, np.asarray(table.data.field(number), dtype=np.float64),
                    basis, order, shape, kernel_half + substamp_half)
            for number in range(len(table.columns))
        ]  # fmt: skip
    return HotpantsKernel(tuple(regions), shape)


def _basis(header: fits.Header) -> Float64:
    """Build the basis from what the table's header says, shape (n_basis, ky, kx)."""
    half = int(header["FWKERN"]) // 2
    u = np.arange(-half, half + 1, dtype=np.float64)
    basis: list[Float64] = []
    for number in range(1, int(header["NGAUSS"]) + 1):
        degree, sigma = int(header[f"DGAUSS{number}"]), float(header[f"SGAUSS{number}"])
        gaussian = np.exp(-0.5 * (u / sigma) ** 2)
        for i in range(degree + 1):
            for j in range(degree + 1 - i):
                along_x, along_y = gaussian * u**i, gaussian * u**j
                even = i % 2 == 0 and j % 2 == 0
                if even:
                    along_x, along_y = along_x / along_x.sum(), along_y / along_y.sum()
                element = np.outer(along_y, along_x)
                basis.append(element - basis[0] if even and basis else element)
    return np.array(basis)


def _region(
    header: fits.Header,
    number: int,
    column: Float64,
    basis: Float64,
    order: int,
    shape: tuple[int, int],
    margin: int,
) -> RegionKernel:
    n_terms = (order + 1) * (order + 2) // 2
    n_varying = len(basis) - 1
    if column.size < 2 + n_varying * n_terms:
        raise ValueError(f"the kernel table has {column.size} rows, too few for its basis")
    x0, x1, y0, y1 = region_limits(str(header.get(f"REGION{number:02d}", "")), shape)
    ny, nx = shape
    window = (max(0, x0 - margin), min(nx, x1 + margin), max(0, y0 - margin), min(ny, y1 + margin))
    varying = column[2 : 2 + n_varying * n_terms].reshape(n_varying, n_terms)
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    wy, wx = window[3] - window[2], window[1] - window[0]
    # Its polynomials in our own coordinates: the same space, so a few places say all.
    steps = np.linspace(0, 1, order + 2)
    x, y = (grid.ravel() for grid in np.meshgrid(steps * (wx - 1), steps * (wy - 1)))
    u, v = (x + 1 - 0.5 * wx) / (0.5 * wx), (y + 1 - 0.5 * wy) / (0.5 * wy)
    theirs = np.stack([u**i * v**j for i, j in powers], axis=-1)
    ours = terms(order, x, y, (wy, wx))
    change = np.linalg.lstsq(ours, theirs, rcond=None)[0]
    coefficients = np.tensordot(change @ varying.T, basis[1:], axes=1)
    coefficients[0] += column[1] * basis[0]
    convolved = str(header.get(f"CONVOL{number:02d}", "TEMPLATE")).strip().upper()
    return RegionKernel(
        x0, x1, y0, y1, window, coefficients, order, float(column[1]),
        "science" if convolved.startswith("I") else "template",
    )  # fmt: skip


def region_limits(text: str, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Read ``[x0:x1,y0:y1]``, 1-based and inclusive, as 0-based with ends excluded."""
    numbers = re.findall(r"\d+", text)
    if len(numbers) != 4:
        return 0, shape[1], 0, shape[0]
    x0, x1, y0, y1 = (int(number) for number in numbers)
    return x0 - 1, x1, y0 - 1, y1
