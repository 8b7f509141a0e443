"""The settings about templates: who is asked, in which order, and what is kept."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from service.settings_types import Section, split, table

_GIGABYTE = 10**9
_REGION = r"^(dr\d{1,2}/(north|south))?$"

HIPS2FITS = (
    "https://alasky.cds.unistra.fr/hips-image-services/hips2fits",
    "https://alaskybis.cds.unistra.fr/hips-image-services/hips2fits",
)

VIZIER = "https://vizier.cds.unistra.fr/viz-bin/votable"

CatalogueName = Literal["ps1", "gaiadr3", "skymapper", "apass"]
ProviderName = Literal["directory", "hips", "panstarrs", "legacysurvey"]


def default_cache() -> Path:
    """Return the folder that the platform's users keep such files in."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "skydelta" / "templates"


def _without_password(value: str) -> str:
    """Refuse an address with a password, and do not repeat it: the message is shown."""
    parts = urlsplit(value)
    # In http a token may stand in the place of the user; sftp://me@host names nobody's secret.
    if parts.password or (parts.username and parts.scheme in ("http", "https")):
        raise ValueError("an address must not hold a password")
    return value


def _archive(value: str) -> str:
    parts = urlsplit(_without_password(value))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value!r} is no http or https address")
    return value.rstrip("/")


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,253}(:\d{1,5})?", value):
        raise ValueError(f"{value!r} is no host, or host:port")
    return value.lower()


class HipsSurveySettings(Section):
    """A HiPS as a source of templates; see `core.templates.hips.survey.HipsSurvey`."""

    survey: str | None = Field(default=None, min_length=1, max_length=200)
    tree: str | None = Field(default=None, min_length=1, max_length=2000)
    band: str | None = Field(default=None, min_length=1, max_length=32)
    pixel_scale: float | None = Field(default=None, gt=0, lt=3600)
    zero_point: float | None = Field(default=None, ge=-100, le=100)
    saturation: float | None = Field(default=None, gt=0)
    asinh: bool | None = None

    @field_validator("tree")
    @classmethod
    def _tells_no_secret(cls, tree: str | None) -> str | None:
        return None if tree is None else _without_password(tree)

    @model_validator(mode="after")
    def _somewhere(self) -> HipsSurveySettings:
        if self.survey is None and self.tree is None:
            raise ValueError("a survey of templates.hips needs `survey`, `tree`, or both")
        if self.zero_point is not None and self.pixel_scale is None and self.survey:
            raise ValueError(
                "a zero_point in templates.hips means nothing without the pixel_scale of the "
                "survey's images"
            )
        return self


class StarMaskSettings(Section):
    """Which stars are masked in templates; see `core.templates.star_mask.StarMask`.

    Attributes
    ----------
    catalogue : str or None
        Of VizieR: ``ps1``, ``gaiadr3``, ``skymapper``, ``apass``.
    file : Path or None
        A table of stars in its place.
    ra, dec, magnitude, error : str
        Columns of the file; ``{band}`` stands for the band.
    brighter_than : float or None
        Stars brighter than this magnitude are masked.
    unknown : bool
        Stars without magnitude too.
    photometric : bool
        Stars that are fainter in the template than in the catalogue too.
    dilate : int
        Side of the square that is masked around each, pixels of the template.
    bands : dict
        Band of the template to band of the catalogue.
    providers : tuple of str
        Whose templates are masked; empty for all.
    """

    catalogue: CatalogueName | None = None
    file: Path | None = None
    ra: str = Field(default="RAJ2000", min_length=1, max_length=100)
    dec: str = Field(default="DEJ2000", min_length=1, max_length=100)
    magnitude: str = Field(default="{band}mag", min_length=1, max_length=100)
    error: str = Field(default="e_{band}mag", min_length=1, max_length=100)
    brighter_than: float | None = Field(default=None, ge=-30, le=40)
    unknown: bool = False
    photometric: bool = False
    dilate: int = Field(default=5, ge=0, le=1001)
    bands: dict[str, str] = Field(default_factory=dict)
    providers: tuple[ProviderName, ...] = ()

    @field_validator("ra", "dec", "magnitude", "error")
    @classmethod
    def _a_column(cls, name: str) -> str:
        if {"{", "}"} & set(name.replace("{band}", "")):
            raise ValueError(f"{name!r}: only {{band}} may stand in braces")
        return name

    @model_validator(mode="after")
    def _something_to_do(self) -> StarMaskSettings:
        if (self.catalogue is None) == (self.file is None):
            raise ValueError("templates.star_mask needs either `catalogue` or `file`")
        if self.brighter_than is None and not (self.unknown or self.photometric):
            raise ValueError(
                "templates.star_mask masks nothing without `brighter_than`, `photometric` or "
                "`unknown`"
            )
        return self


Archive = Annotated[str, AfterValidator(_archive)]
Archives = Annotated[tuple[Archive, ...], BeforeValidator(split)]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], BeforeValidator(split)]
HipsSurveys = Annotated[tuple[HipsSurveySettings, ...], BeforeValidator(table)]
Bands = Annotated[dict[str, str | dict[ProviderName, str]], BeforeValidator(table)]
Providers = Annotated[tuple[ProviderName, ...], BeforeValidator(split)]


class TemplateSettings(Section):
    """Where templates are looked for, and where they are kept."""

    providers: Providers = Field(
        default=("directory",),
        min_length=1,
        description="Who is asked, in this order: `directory`, `hips`, `panstarrs`, `legacysurvey`",
    )
    path: str = Field(
        default="templates",
        min_length=1,
        description="`directory`: folder of template FITS files, or its URL (`s3://...`)",
    )
    hips: HipsSurveys = Field(
        default=(),
        description='`hips`: surveys, the first of a band first: `[{ band = "r", survey = '
        '"CDS/P/DSS2/red" }]`; also `tree`, `pixel_scale`, `zero_point`, `saturation`, `asinh`',
    )
    hips2fits_urls: Archives = Field(
        default=HIPS2FITS,
        description="`hips`: hips2fits services, asked in this order where there is no tree",
    )
    panstarrs_url: Archive = Field(
        default="https://ps1images.stsci.edu", description="`panstarrs`: the archive"
    )
    legacysurvey_url: Archive = Field(
        default="https://portal.nersc.gov/cfs/cosmo/data/legacysurvey",
        description="`legacysurvey`: the archive",
    )
    legacysurvey_south: str = Field(
        default="dr10/south",
        pattern=_REGION,
        description="`legacysurvey`: release and region of the south; empty for none",
    )
    legacysurvey_north: str = Field(
        default="dr9/north",
        pattern=_REGION,
        description="`legacysurvey`: release and region of the north; empty for none",
    )
    fill: bool = Field(
        default=False,
        description="What a provider leaves bare of an exposure comes from the next one of the "
        "same band, where both have zero points; else it is masked",
    )
    star_mask: Annotated[StarMaskSettings | None, BeforeValidator(table)] = Field(
        default=None,
        description="Saturated stars of templates are masked: "
        '`{ catalogue = "ps1", brighter_than = 14, dilate = 15 }`; `file` in place of `catalogue`; '
        "also `photometric`, `unknown`, `bands`, `providers`",
    )
    vizier_url: Archive = Field(
        default=VIZIER, description="`star_mask`: the VizieR that has the catalogues"
    )
    bands: Bands = Field(
        default_factory=dict,
        description="Band of the exposure to band of the archives, not of `directory`: "
        '`{ "clear" = "r" }`; or of each by its name: '
        '`{ "clear" = { panstarrs = "r", legacysurvey = "g" } }`',
    )
    allowed_hosts: Hosts = Field(
        default=(),
        description="Hosts that archives may redirect to, besides those of the addresses above",
    )
    deadline_seconds: float = Field(
        default=60.0, gt=0, le=3600, description="The most time that one provider may take"
    )
    timeout_seconds: float = Field(
        default=20.0,
        gt=0,
        le=600,
        description="An archive silent for so long is given up",
    )
    attempts: int = Field(
        default=3, ge=1, le=10, description="Requests to an archive that fails for the moment"
    )
    max_download_bytes: int = Field(
        default=2 * _GIGABYTE, gt=0, description="Larger files of an archive are refused"
    )
    cache: Path = Field(
        default_factory=default_cache, description="Folder of what was fetched and projected"
    )
    cache_bytes: int = Field(
        default=50 * _GIGABYTE, ge=0, description="The cache is kept below this; 0 keeps nothing"
    )
    cache_hole_seconds: float = Field(
        default=86_400.0, ge=0, description="A hole in a survey is asked for again after this"
    )
    keep_projected: bool = Field(
        default=False,
        description="Keep projected templates too; "
        "for exposures whose pixels repeat to 0.01 of one",
    )
    prefetch: bool = Field(
        default=True, description="Fetch templates of waiting exposures and of pointings ahead"
    )

    prefetch_seconds: float = Field(
        default=900.0,
        gt=0,
        le=86_400,
        description="The most time that one provider may take for a pointing, "
        "for which nobody waits yet",
    )

    @field_validator("path")
    @classmethod
    def _readable(cls, path: str) -> str:
        scheme, mark, _ = _without_password(path).partition("://")
        if mark:
            from fsspec import available_protocols  # takes long to import, and few need it

            if scheme not in available_protocols():
                raise ValueError(f"{scheme}:// is no kind of address that can be read")
        return path

    @field_validator("bands")
    @classmethod
    def _names(
        cls, bands: dict[str, str | dict[ProviderName, str]]
    ) -> dict[str, str | dict[ProviderName, str]]:
        for band, theirs in bands.items():
            for name in [theirs] if isinstance(theirs, str) else theirs.values():
                if not re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", name):
                    raise ValueError(f"the band {name!r} for {band!r} is no name of a band")
        return bands

    @model_validator(mode="after")
    def _all_given(self) -> TemplateSettings:
        twice = sorted({name for name in self.providers if self.providers.count(name) > 1})
        if twice:
            raise ValueError(f"templates.providers names {', '.join(twice)} twice")
        if "hips" in self.providers and not self.hips:
            raise ValueError("templates.providers has hips, and templates.hips names no survey")
        if self.star_mask is not None:
            others = [name for name in self.star_mask.providers if name not in self.providers]
            if others:
                raise ValueError(
                    f"templates.star_mask.providers has {', '.join(others)}, and "
                    "templates.providers has not"
                )
        if "legacysurvey" in self.providers and not (
            self.legacysurvey_south or self.legacysurvey_north
        ):
            raise ValueError(
                "templates.providers has legacysurvey, and both legacysurvey_south and "
                "legacysurvey_north are empty"
            )
        return self

    def bands_of(self, provider: ProviderName) -> dict[str, str]:
        """Return how a provider calls the bands of exposures that it calls otherwise.

        The files of a folder do it as the exposures do, unless the folder is named.
        """
        known = {
            ours: theirs.get(provider) if isinstance(theirs, dict) else theirs
            for ours, theirs in self.bands.items()
            if isinstance(theirs, dict) or provider != "directory"
        }
        return {ours: theirs for ours, theirs in known.items() if theirs is not None}

    @property
    def fetches(self) -> bool:
        """Whether anything comes from further away than a folder."""
        asks = self.star_mask is not None and self.star_mask.catalogue is not None
        return asks or self.providers != ("directory",) or "://" in self.path

    @property
    def most_seconds(self) -> float:
        """The most time that all providers may take, one after another."""
        return self.deadline_seconds * len(self.providers)

    def ahead(self, seconds: float | None = None) -> TemplateSettings:
        """Return the settings for fetching ahead: providers have ``prefetch_seconds``, or these."""
        patience = self.prefetch_seconds if seconds is None else seconds
        return self.model_copy(update={"deadline_seconds": patience})

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host that the service may speak to for templates."""
        addresses: list[str] = []
        if "hips" in self.providers:
            if any(each.survey for each in self.hips):
                addresses.extend(self.hips2fits_urls)
            addresses.extend(each.tree for each in self.hips if each.tree and "://" in each.tree)
        if "panstarrs" in self.providers:
            addresses.append(self.panstarrs_url)
        if "legacysurvey" in self.providers:
            addresses.append(self.legacysurvey_url)
        if self.star_mask is not None and self.star_mask.catalogue is not None:
            addresses.append(self.vizier_url)
        own = [urlsplit(address).netloc.lower() for address in addresses]
        return tuple(dict.fromkeys([*own, *self.allowed_hosts]))
