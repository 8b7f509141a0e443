"""The one template that the caller names."""

from __future__ import annotations

import os
from dataclasses import dataclass

from core.errors import NoTemplate, UnusableInput
from core.exposure import TemplateFacts
from core.image import Image
from core.reading import read_image
from core.templates.index import Frame
from core.templates.template import Template, TemplateRequest

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class SingleTemplate:
    """A template that is used for every exposure.

    Attributes
    ----------
    path : path
        FITS file.
    mask, weight, variance : path or None
        Its separate planes.
    hdu : int or str or None
        Which image of the file.
    aligned : bool
        It lies on the exposure's pixel grid already; no WCS is needed.
    max_pixels : int
        A larger image is refused.
    """

    path: Path
    mask: Path | None = None
    weight: Path | None = None
    variance: Path | None = None
    hdu: int | str | None = None
    aligned: bool = False
    max_pixels: int = 20_000 * 20_000
    name: str = "file"

    def find(self, request: TemplateRequest) -> Template:
        """Return the template, if it covers enough of the exposure.

        Raises
        ------
        NoTemplate
            If it does not overlap enough.
        InputUnavailable, UnusableInput, QualityRejected
            If it cannot be read, or is not on the exposure's grid although it should be.
        """
        on_grid = self.aligned or request.wcs is None
        image = read_image(
            self.path,
            mask=self.mask,
            weight=self.weight,
            variance=self.variance,
            hdu=self.hdu,
            max_pixels=self.max_pixels,
            need_wcs=not on_grid,
        )
        overlap = 1.0 if on_grid else self._overlap(image, request)
        if on_grid and image.shape != request.shape:
            raise UnusableInput(
                f"{os.fspath(self.path)}: the template has {image.shape[1]} x {image.shape[0]} "
                f"pixels and the exposure {request.shape[1]} x {request.shape[0]}; they are not "
                "aligned"
            )
        facts = image.facts
        return Template(
            image=image,
            facts=TemplateFacts(
                provider=self.name,
                template_id=os.path.basename(os.fspath(self.path)),
                band=facts.band,
                zero_point=facts.zero_point,
                overlap=overlap,
                mjd_first=facts.mjd_mid,
                mjd_last=facts.mjd_mid,
            ),
            on_grid=on_grid,
        )

    def _overlap(self, image: Image, request: TemplateRequest) -> float:
        assert request.wcs is not None
        assert image.wcs is not None
        frame = Frame.of(request.wcs, request.shape)
        overlap = frame.overlap(Frame.of(image.wcs, image.shape))
        if overlap.fraction < request.min_overlap:
            what = (
                f"lies {overlap.distance:.3g} deg away from the exposure"
                if overlap.fraction == 0
                else f"covers only {100 * overlap.fraction:.0f} % of the exposure, "
                f"{100 * request.min_overlap:.0f} % are needed"
            )
            raise NoTemplate(f"{os.fspath(self.path)}: the template {what}")
        return overlap.fraction
