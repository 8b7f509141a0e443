"""Validates exposure events: the first contract, at the edge of the service.

Fields that we do not know are ignored, so that a producer may start to send a new field before we
read it; `ExposureEvent.notes` names them, so that a misspelt one is seen in the status record.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from core.exposure import Exposure
from service.event_fields import Card, CardValue, Identifier, ModifiedJulianDate, Time, Uri, Word
from service.event_wire import (
    SchemaLookup,
    SchemaUnavailable,
    UnreadableEvent,
    about_unknown,
    in_one_line,
    read_record,
)

__all__ = ["ExposureEvent", "SchemaLookup", "SchemaUnavailable", "UnreadableEvent", "decode"]


class ExposureEvent(BaseModel):
    """One exposure, as its event announces it.

    Types are strict: a number in quotes is refused. The meaning and unit of each field are in
    ``schemas/exposure``.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    exposure_id: Identifier
    science_uri: Uri
    band: Word
    mjd_mid: ModifiedJulianDate
    exposure_time: float | None = Field(default=None, gt=0, le=1e7)
    mask_uri: Uri | None = None
    weight_uri: Uri | None = None
    variance_uri: Uri | None = None
    hdu: Annotated[int, Field(ge=0, le=100_000)] | Word | None = None
    instrument: Word | None = None
    gain: float | None = Field(default=None, gt=0, le=1e6)
    read_noise: float | None = Field(default=None, ge=0, le=1e6)
    saturation: float | None = Field(default=None, gt=0, le=1e12)
    zero_point: float | None = Field(default=None, ge=-100, le=100)
    field: Word | None = None
    detector: Word | None = None
    program: Word | None = None
    header_overrides: dict[Card, CardValue] | None = Field(default=None, max_length=200)
    expires_at: Time | None = None

    _notes: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _one_weight(self) -> Self:
        if self.weight_uri is not None and self.variance_uri is not None:
            raise ValueError("weight_uri and variance_uri are both given; give one")
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about how the event was read."""
        return self._notes

    def announced(self) -> Exposure:
        """Return the exposure as far as its status needs it, its files not looked for."""
        return Exposure(
            self.exposure_id,
            self.science_uri,
            instrument=self.instrument,
            band=self.band,
            mjd_mid=self.mjd_mid,
            field=self.field,
            detector=self.detector,
        )

    def expired(self, now: datetime) -> bool:
        """Return whether the event says that it is too late to work on it."""
        return self.expires_at is not None and now >= self.expires_at


def decode(payload: bytes | None, lookup: SchemaLookup | None = None) -> ExposureEvent:
    """Turn the bytes of a message into a validated event.

    Parameters
    ----------
    payload : bytes or None
        The value of the message; None is a tombstone.
    lookup : callable, optional
        Gives the writer's schema of a registry id. Without it, registry-framed events are taken
        to be written with our own schema.

    Raises
    ------
    UnreadableEvent
        If the bytes are no event, in one line that names every field that is wrong.
    SchemaUnavailable
        If ``lookup`` could not find out now; the same bytes may be decoded later.
    """
    fields = read_record(payload, lookup, "exposure")
    try:
        event = ExposureEvent.model_validate(fields)
    except ValidationError as error:
        raise UnreadableEvent(in_one_line(error), _usable_id(fields)) from None
    event._notes = about_unknown(fields, ExposureEvent.model_fields)
    return event


def _usable_id(fields: Mapping[str, Any]) -> str | None:
    """Return the exposure id of an event that is wrong elsewhere."""
    try:
        return _OnlyId.model_validate(fields).exposure_id
    except ValidationError:
        return None


class _OnlyId(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    exposure_id: Identifier
