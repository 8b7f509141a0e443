"""The settings about the schema registry."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from service.secret_settings import Secret, SecretFile
from service.settings_types import Section


class RegistrySettings(Section):
    """The Confluent-compatible schema registry that tells how framed Avro events were written."""

    url: str | None = Field(
        default=None,
        pattern=r"^https?://[^@\s]+$",
        description="Registry of the events' schemas; without one, framed Avro events are taken "
        "to be written with our own schema",
    )
    username: str | None = Field(default=None, description="For HTTP basic authentication")
    password_file: SecretFile | None = Field(default=None, description="File that holds `password`")
    password: Secret = Field(
        default=None, validate_default=True, description="For HTTP basic authentication"
    )
    ca_file: Path | None = Field(
        default=None, description="Certificate authorities of the registry, PEM"
    )
    timeout_seconds: float = Field(
        default=5.0, gt=0, le=60, description="A registry silent for so long is asked again later"
    )

    @model_validator(mode="after")
    def _both_credentials(self) -> RegistrySettings:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password need each other")
        return self
