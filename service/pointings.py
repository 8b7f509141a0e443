"""Validates pointings: where the telescope looks next, so that templates are there before it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.event_fields import Card, CardValue, Identifier, Time, Word
from service.event_wire import SchemaLookup, UnreadableEvent, in_one_line, read_record

if TYPE_CHECKING:
    from core.deadline import Deadline
    from core.templates import TemplateRequest

MOST_PIXELS = 20_000  # along an axis


class Pointing(BaseModel):
    """A detector on the sky; meaning and unit of each field are in ``schemas/pointing``."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    pointing_id: Identifier
    band: Word
    width: int = Field(ge=16, le=MOST_PIXELS)
    height: int = Field(ge=16, le=MOST_PIXELS)
    ra: float | None = Field(default=None, ge=0, le=360)
    dec: float | None = Field(default=None, ge=-90, le=90)
    pixel_scale: float | None = Field(default=None, gt=1e-3, le=3600)
    position_angle: float = Field(default=0.0, ge=-360, le=360)
    mirrored: bool = False
    wcs: Annotated[dict[Card, CardValue], Field(max_length=500)] | None = None
    instrument: Word | None = None
    detector: Word | None = None
    field: Word | None = None
    expires_at: Time | None = None

    @model_validator(mode="after")
    def _one_grid(self) -> Self:
        place = (self.ra, self.dec, self.pixel_scale)
        if self.wcs is None and None in place:
            raise ValueError("ra, dec and pixel_scale are needed, or wcs in their place")
        if self.wcs is not None and any(value is not None for value in place):
            raise ValueError("ra, dec and pixel_scale are given, and wcs as well; give one")
        return self

    def expired(self, now: datetime) -> bool:
        """Return whether nobody wants these templates any more."""
        return self.expires_at is not None and now >= self.expires_at

    def request(self, min_overlap: float, deadline: Deadline | None = None) -> TemplateRequest:
        """Return what a template provider is to be asked.

        Parameters
        ----------
        min_overlap : float
            The least fraction of the detector that a template must cover.
        deadline : Deadline, optional
            By when the answer is wanted.

        Raises
        ------
        core.errors.UnusableInput
            If the cards of the WCS do not describe a place on the sky.
        """
        from core.pointing import grid_from_cards, tangential_grid
        from core.templates import TemplateRequest

        shape = (self.height, self.width)
        if self.wcs is not None:
            wcs = grid_from_cards(self.wcs, shape)
        else:
            assert self.ra is not None
            assert self.dec is not None
            assert self.pixel_scale is not None
            wcs = tangential_grid(
                (self.ra, self.dec), shape, self.pixel_scale,
                position_angle=self.position_angle, mirrored=self.mirrored,
            )  # fmt: skip
        return TemplateRequest(
            wcs, shape, band=self.band, min_overlap=min_overlap, deadline=deadline
        )


def decode(payload: bytes | None, lookup: SchemaLookup | None = None) -> Pointing:
    """Turn the bytes of a message into a validated pointing.

    Parameters
    ----------
    payload : bytes or None
        The value of the message.
    lookup : callable, optional
        Gives the writer's schema of a registry id, see `service.event_wire.read_record`.

    Raises
    ------
    UnreadableEvent
        If the bytes are no pointing, in one line that names every field that is wrong.
    """
    fields = read_record(payload, lookup, "pointing")
    try:
        return Pointing.model_validate(fields)
    except ValidationError as error:
        raise UnreadableEvent(in_one_line(error)) from None
