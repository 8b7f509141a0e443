"""Everything that an operator may choose, as typed sections; validated once, at the edge.

A TOML file (``--config`` or ``SKYDELTA_CONFIG``) has one table a section; an environment variable
``SKYDELTA_<SECTION>__<KEY>`` wins over the file. `service.settings_loading.load` reads both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.cpus import available_cpus
from service.input_addresses import parse_prefix, shown
from service.kafka_settings import KafkaSettings
from service.registry_settings import RegistrySettings
from service.settings_types import ByteSize, Names, Paths, Section, TopicName, table
from service.template_settings import TemplateSettings


class TopicSettings(Section):
    """Where events come from and where results go."""

    exposures: TopicName = Field(default="exposures", description="Input: exposure events")
    alerts: TopicName = Field(default="alerts", description="Output: alert packets")
    status: TopicName = Field(
        default="exposure-status", description="Output: one status record an exposure"
    )
    dead_letters: TopicName = Field(
        default="exposures-dead-letter", description="Output: events that could not be processed"
    )
    pointings: TopicName | None = Field(
        default=None,
        description="Input: pointings whose templates are fetched ahead",
    )

    @model_validator(mode="after")
    def _all_different(self) -> TopicSettings:
        names = [self.exposures, self.alerts, self.status, self.dead_letters]
        names += [self.pointings] if self.pointings else []
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"every topic needs a name of its own; used twice: {', '.join(twice)}")
        return self


class PipelineSection(Section):
    """The science; see `core.pipeline.PipelineSettings`."""

    engines: Names = Field(
        default=("sfft",), min_length=1, description="Subtraction engines, tried in this order"
    )
    hotpants: str = Field(
        default="hotpants",
        min_length=1,
        description="Your HOTPANTS program, by name on the PATH or by path",
    )
    threshold: float = Field(default=5.0, gt=0, le=100, description="Detection threshold, sigma")
    max_pixels: int = Field(
        default=20_000 * 20_000, gt=0, description="Larger images are refused, unread"
    )
    min_overlap: float = Field(
        default=0.3, gt=0, le=1, description="Least fraction of an exposure a template must cover"
    )
    max_candidates: int = Field(
        default=2000, gt=0, description="More candidates than this reject the exposure"
    )
    cutout_size: int = Field(
        default=63, ge=15, le=63, description="Side of the cutouts, pixels, odd"
    )

    @field_validator("cutout_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"{value} is even; the candidate must be at the centre")
        return value


class WorkerSettings(Section):
    """The worker processes."""

    count: int = Field(
        default_factory=available_cpus,
        ge=1,
        le=256,
        description="Worker processes; default: one for each CPU this process may use",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Threads in each worker; default: CPUs / workers, at least 1",
    )
    deadline_seconds: float = Field(
        default=300.0, gt=0, description="A worker that takes longer is stopped and replaced"
    )
    memory_limit: ByteSize | None = Field(
        default=None,
        ge=500_000_000,
        description="A worker that holds more memory is stopped and replaced; also as `4G`",
    )
    start_timeout_seconds: float = Field(
        default=300.0, gt=0, description="A worker must be warm after this"
    )
    attempts: int = Field(
        default=3,
        ge=1,
        le=20,
        description="How often an exposure is tried while input or archive are away; the last time "
        "within `workers.deadline_seconds` of the first",
    )
    retry_seconds: float = Field(
        default=2.0, ge=0, description="Wait before the second attempt; doubles each time"
    )
    shutdown_grace_seconds: float = Field(
        default=30.0, ge=0, description="On SIGTERM, exposures in flight have this long to finish"
    )

    @property
    def threads_each(self) -> int:
        """Threads that one worker may use."""
        return self.threads or max(1, available_cpus() // self.count)


class PacketSection(Section):
    """The alert packets."""

    publisher: str = Field(
        default="skydelta", min_length=1, max_length=200, description="`publisher` of the packets"
    )
    object_prefix: str = Field(
        default="SD", pattern=r"^[A-Za-z]{1,8}$", description="First letters of every `objectId`"
    )
    program_id: int = Field(
        default=1, ge=0, le=99, description="`programid` of the packets (1 is public)"
    )
    filter_ids: Annotated[dict[str, int], BeforeValidator(table)] = Field(
        default_factory=lambda: {"g": 1, "r": 2, "i": 3},
        description="`fid` of each band; others get 0; in the environment as JSON",
    )


class WebSettings(Section):
    """Health and metrics over HTTP."""

    enabled: bool = Field(default=True, description="Serve /healthz, /readyz and /metrics")
    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="Port; 0 takes a free one")
    stalled_after_seconds: float = Field(
        default=60.0, gt=0, description="/healthz fails when the loop has not turned for this long"
    )


class InputSettings(Section):
    """What an event may make the service read."""

    roots: Paths = Field(
        default=(), description="Folders that files may be read from; others are refused"
    )
    max_event_bytes: int = Field(
        default=262_144, ge=1_000, description="Larger events are refused, undecoded"
    )

    prefixes: Names = Field(
        default=(),
        description="Addresses below which files may be fetched: `https://host/path/`, "
        "`s3://bucket/prefix/`; others are refused",
    )
    max_file_bytes: ByteSize = Field(
        default=4_000_000_000, gt=0, description="Larger files are refused, unread; also as `4G`"
    )
    timeout_seconds: float = Field(
        default=20.0, gt=0, le=600, description="A server silent for so long is given up"
    )
    fetch_seconds: float = Field(
        default=120.0,
        gt=0,
        description="All files of an exposure must have been fetched within this, and within 80 % "
        "of `workers.deadline_seconds`",
    )
    download_folder: Path | None = Field(
        default=None,
        description="Where fetched files lie while they are worked on; default: that of temporary "
        "files (`TMPDIR`)",
    )

    @field_validator("prefixes")
    @classmethod
    def _folders(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in prefixes:
            try:
                parse_prefix(prefix)
            except ValueError as error:
                raise ValueError(f"{shown(prefix)!r} {error}") from None
        return prefixes

    @field_validator("roots")
    @classmethod
    def _absolute(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        for root in roots:
            if not root.is_absolute():
                raise ValueError(f"{root} is not an absolute path")
        return roots


class LogSettings(Section):
    """Logging, always to stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe level"
    )
    format: Literal["auto", "human", "json"] = Field(
        default="auto", description="`auto` is human on a terminal and JSON lines elsewhere"
    )

    @field_validator("level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value


class Settings(BaseSettings):
    """All sections; keyword arguments are the file's values, the environment wins over them."""

    model_config = SettingsConfigDict(
        env_prefix="SKYDELTA_",
        env_nested_delimiter="__",
        enable_decoding=False,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
    )

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    registry: RegistrySettings = Field(default_factory=RegistrySettings)
    topics: TopicSettings = Field(default_factory=TopicSettings)
    templates: TemplateSettings = Field(default_factory=TemplateSettings)
    pipeline: PipelineSection = Field(default_factory=PipelineSection)
    workers: WorkerSettings = Field(default_factory=WorkerSettings)
    packets: PacketSection = Field(default_factory=PacketSection)
    web: WebSettings = Field(default_factory=WebSettings)
    input: InputSettings = Field(default_factory=InputSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @model_validator(mode="after")
    def _time_for_templates(self) -> Settings:
        templates, workers = self.templates, self.workers
        if templates.fetches and templates.most_seconds >= workers.deadline_seconds:
            raise ValueError(
                f"templates.deadline_seconds ({templates.deadline_seconds:g}) for each of "
                f"{len(templates.providers)} providers is not below workers.deadline_seconds "
                f"({workers.deadline_seconds:g}): a worker would be stopped before it has a "
                "template; lower the first or raise the other"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over what the file (the keyword arguments) says."""
        return env_settings, init_settings
