"""Asking the hips2fits service of CDS for an image of any HiPS on any pixel grid."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.wcs import WCS

from core.deadline import Deadline
from core.errors import (
    ArchiveUnavailable,
    NotInArchive,
    RequestRefused,
    UnexpectedAnswer,
    UnusableInput,
)
from core.fitsfile import open_fits
from core.image import FloatImage
from core.templates.cache import CacheKey, FileCache, NoCache
from core.templates.fetching.addresses import host_of
from core.templates.fetching.fetcher import Fetcher, FetchPolicy

logger = logging.getLogger(__name__)

HIPS2FITS_ENDPOINTS = (
    "https://alasky.cds.unistra.fr/hips-image-services/hips2fits",
    "https://alaskybis.cds.unistra.fr/hips-image-services/hips2fits",
)
"""The service and its mirror (https://alasky.cds.unistra.fr/hips-image-services/hips2fits)."""


@dataclass(frozen=True)
class Hips2Fits:
    """A client of the service, with fallback from host to host.

    Attributes
    ----------
    fetcher : Fetcher
        Whose policy allows the hosts.
    endpoints : tuple of str
        Asked in this order; the next one when the last one gave no image.
    cache : TemplateCache or NoCache
        Where answers are kept.
    max_pixels : int
        What the service makes at a time; larger images are asked for in strips.
    """

    fetcher: Fetcher
    endpoints: tuple[str, ...] = HIPS2FITS_ENDPOINTS
    cache: FileCache = field(default_factory=NoCache)
    max_pixels: int = 50_000_000

    def image(self, hips: str, wcs: WCS, shape: tuple[int, int], deadline: Deadline) -> FloatImage:
        """Return a HiPS on a pixel grid.

        Parameters
        ----------
        hips : str
            Identifier, such as ``CDS/P/PanSTARRS/DR1/r``.
        wcs : WCS
            Celestial, without distortion (the service knows none).
        shape : tuple of int
            (ny, nx).
        deadline : Deadline
            For all of it.

        Returns
        -------
        ndarray of float32, shape (ny, nx)
            The values in the HiPS, interpolated (linearly, by the service), not scaled with the
            area of the pixels; NaN where there is nothing.

        Raises
        ------
        core.errors.RequestRefused
            If no host makes the image: none knows the HiPS; its own words are in the message.
        core.errors.ArchiveUnavailable
            If no host made it, and at least one could not be asked.
        """
        image = np.empty(shape, np.float32)
        for first, last in self._strips(shape):
            strip = wcs.deepcopy()
            strip.wcs.crpix = [wcs.wcs.crpix[0], wcs.wcs.crpix[1] - first]
            strip.pixel_shape = (shape[1], last - first)
            query = _query(hips, strip)
            size = (last - first, shape[1])
            image[first:last] = self._from_any_host(query, size, deadline)
        return image

    def _strips(self, shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
        ny, nx = shape
        number = max(1, -(-ny * nx // self.max_pixels))
        edges = np.linspace(0, ny, min(number, ny) + 1).round().astype(int)
        return zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)

    def _from_any_host(
        self, query: dict[str, str], shape: tuple[int, int], deadline: Deadline
    ) -> FloatImage:
        failures: list[ArchiveUnavailable | NotInArchive | RequestRefused] = []

        def make(path: Path) -> dict[str, str]:
            for place, endpoint in enumerate(self.endpoints):
                # What is left of the time is shared with the hosts that may have to be asked yet.
                part = deadline.shorter(deadline.remaining() / (len(self.endpoints) - place))
                try:
                    self.fetcher.download(endpoint, path, params=query, deadline=part)
                    _pixels(path, shape, endpoint)
                except (ArchiveUnavailable, NotInArchive, RequestRefused) as error:
                    logger.warning("hips2fits: %s", error)
                    failures.append(error)
                else:
                    return {"url": endpoint, "hips": query["hips"]}
            said = "; ".join(dict.fromkeys(str(error) for error in failures))
            if any(error.retriable for error in failures):
                raise ArchiveUnavailable(f"hips2fits: no host answered: {said}")
            # A service that is not there is no hole of the survey: nothing is remembered.
            raise RequestRefused(f"hips2fits: no host makes this image: {said}")

        key = CacheKey("hips2fits", tuple(f"{name}={query[name]}" for name in sorted(query)))
        with self.cache.entry(key, make, deadline=deadline) as file:
            return _pixels(file.path, shape, str(file.source.get("url", "hips2fits")))


def default_fetcher(endpoints: Sequence[str], *, timeout_seconds: float = 60.0) -> Fetcher:
    """Return a fetcher that may speak to the given addresses and to nobody else."""
    hosts = tuple(dict.fromkeys(host_of(endpoint) for endpoint in endpoints))
    return Fetcher(FetchPolicy(hosts, timeout_seconds=timeout_seconds))


def _query(hips: str, wcs: WCS) -> dict[str, str]:
    """Return the service's query as astroquery builds it."""
    from astroquery.hips2fits import hips2fits  # takes long to import, and not all need it

    payload = hips2fits.query_with_wcs(hips=hips, wcs=wcs, get_query_payload=True)
    # How pictures are to look is no part of what determines a FITS image.
    return {name: str(payload[name]) for name in ("hips", "wcs", "format")}


def _pixels(path: Path, shape: tuple[int, int], source: str) -> FloatImage:
    """Return an answer's pixels.

    Raises
    ------
    UnexpectedAnswer
        If they are not those that were asked for.
    """
    try:
        file = open_fits(path, max_pixels=shape[0] * shape[1])
        image = next((hdu for hdu in file.hdus if hdu.is_image), None)
        if image is None or image.shape != shape:
            raise UnexpectedAnswer(
                f"{source}: answered with "
                + ("no image" if image is None else f"{image.shape[1]} x {image.shape[0]} pixels")
                + f" instead of {shape[1]} x {shape[0]}"
            )
        values = file.pixels(image).astype(np.float32)
    except UnusableInput as error:
        raise UnexpectedAnswer(f"{source}: {error}") from error
    values[~np.isfinite(values)] = np.nan
    return values
