"""The settings about templates: what is refused, and which hosts follow from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.templates import TemplateRequest
from service.settings_loading import SettingsError, load
from service.settings_report import as_toml
from service.template_settings import HIPS2FITS, TemplateSettings
from service.templates import make_templates


def said(tmp_path: Path, text: str) -> str:
    path = tmp_path / "skydelta.toml"
    path.write_text(f"[templates]\n{text}\n")
    with pytest.raises(SettingsError) as caught:
        load(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('providers = ["sdss"]', "templates.providers.0"),
        ("providers = []", "templates.providers"),
        ('providers = ["directory", "directory"]', "names directory twice"),
        ('providers = ["hips"]', "templates.hips names no survey"),
        ('hips = [{ band = "r" }]', "needs `survey`, `tree`, or both"),
        ('hips = [{ survey = "a", zero_point = 25 }]', "without the pixel_scale"),
        ('panstarrs_url = "ftp://there"', "no http or https address"),
        ('panstarrs_url = "https://me:secret@there"', "must not hold a password"),
        ('hips2fits_urls = ["file:///etc/passwd"]', "no http or https address"),
        ('allowed_hosts = ["http://there"]', "is no host"),
        ('legacysurvey_south = "../x"', "templates.legacysurvey_south"),
        (
            'providers = ["legacysurvey"]\nlegacysurvey_south = ""\nlegacysurvey_north = ""',
            "both legacysurvey_south and legacysurvey_north are empty",
        ),
        ('bands = { clear = "../r" }', "is no name of a band"),
        ('bands = { clear = { panstarrs = "../r" } }', "is no name of a band"),
        ('bands = { clear = { sdss = "r" } }', "templates.bands.clear"),
        ("star_mask = { brighter_than = 14 }", "needs either `catalogue` or `file`"),
        ('star_mask = { catalogue = "ps1", file = "a.csv", brighter_than = 1 }', "needs either"),
        ('star_mask = { catalogue = "ps1" }', "masks nothing without `brighter_than`"),
        ('star_mask = { catalogue = "usno", brighter_than = 14 }', "templates.star_mask.catalogue"),
        ('star_mask = { file = "a", magnitude = "{x}", brighter_than = 1 }', "may stand in braces"),
        (
            'star_mask = { catalogue = "ps1", brighter_than = 14, providers = ["hips"] }',
            "templates.star_mask.providers has hips, and templates.providers has not",
        ),
        ('vizier_url = "ftp://there"', "no http or https address"),
        ("cache_bytes = -1", "templates.cache_bytes"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str, tmp_path: Path) -> None:
    assert words in said(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        'panstarrs_url = "https://me:secret@there"',
        'panstarrs_url = "ftp://me:secret@there"',
        'path = "https://me:secret@there/coadds"',
        'path = "https://secret@there/coadds"',
        'path = "s4://me:secret@there/coadds"',
        'hips = [{ tree = "https://me:secret@there/r" }]',
    ],
)
def test_a_password_in_an_address_is_not_repeated(text: str, tmp_path: Path) -> None:
    message = said(tmp_path, text)
    assert "must not hold a password" in message
    assert "secret" not in message


def test_who_one_is_may_be_said_where_it_is_no_secret() -> None:
    for path in ("sftp://me@there/coadds", "abfs://container@account/coadds", "/data/a:b@c"):
        assert TemplateSettings(path=path).path == path


def test_providers_have_their_time_before_a_worker_has_used_up_its_own(tmp_path: Path) -> None:
    for text in (
        'providers = ["directory", "panstarrs"]\ndeadline_seconds = 150',
        'path = "s3://bucket/coadds"\ndeadline_seconds = 300',
        'providers = ["panstarrs"]\n[workers]\ndeadline_seconds = 60',
    ):
        message = said(tmp_path, text)
        assert "is not below workers.deadline_seconds" in message
        assert "\n" not in message
    surveys = 'hips = [{ survey = "CDS/P/DSS2/red" }]\nproviders = '
    everybody = '["directory", "hips", "panstarrs", "legacysurvey"]'
    for text in ("deadline_seconds = 300", f"{surveys}{everybody}"):
        path = tmp_path / "skydelta.toml"
        path.write_text(f"[templates]\n{text}\n")
        load(path)


def test_what_is_fetched_ahead_may_take_longer() -> None:
    settings = TemplateSettings(providers=("directory", "panstarrs"), prefetch_seconds=500.0)
    assert settings.most_seconds == 120
    assert settings.ahead().most_seconds == 1000
    links = make_templates(settings.ahead(7.0), max_pixels=10**6).templates.links
    assert [link.seconds for link in links] == [7.0, 7.0]


def test_each_archive_may_call_a_band_otherwise() -> None:
    bands = {"R": "r", "clear": {"panstarrs": "r", "legacysurvey": "g"}, "w": {"directory": "r"}}
    settings = TemplateSettings.model_validate(
        {"bands": bands, "providers": ["directory", "panstarrs", "legacysurvey"]}
    )
    links = make_templates(settings, max_pixels=10**6).templates.links
    assert [link.bands for link in links] == [
        {"w": "r"}, {"R": "r", "clear": "r"}, {"R": "r", "clear": "g"},
    ]  # fmt: skip
    asked = [link.request(TemplateRequest(None, (9, 9), band="clear")).band for link in links]
    assert asked == ["clear", "r", "g"]


def test_only_the_hosts_of_those_who_are_asked_may_be_spoken_to() -> None:
    assert TemplateSettings().hosts == ()
    panstarrs = TemplateSettings(providers=("directory", "panstarrs"))
    assert panstarrs.hosts == ("ps1images.stsci.edu",)
    tree = {"tree": "http://Tiles.org:8080/r", "band": "r"}
    trees = TemplateSettings.model_validate({"providers": ["hips"], "hips": [tree]})
    assert trees.hosts == ("tiles.org:8080",)
    named = TemplateSettings.model_validate(
        {"providers": ["hips"], "hips": [{"survey": "CDS/P/DSS2/red"}], "allowed_hosts": ["m.org"]}
    )
    assert named.hosts == (*(url.split("/")[2] for url in HIPS2FITS), "m.org")
    stars = {"catalogue": "ps1", "brighter_than": 14}
    masked = TemplateSettings.model_validate({"star_mask": stars})
    assert masked.hosts == ("vizier.cds.unistra.fr",)
    assert masked.fetches
    given = TemplateSettings.model_validate({"star_mask": {"file": "a", "brighter_than": 14}})
    assert given.hosts == ()
    assert not given.fetches


def test_fetching_is_told_from_reading_a_folder() -> None:
    assert not TemplateSettings().fetches
    assert TemplateSettings(path="s3://bucket/templates").fetches
    assert TemplateSettings(providers=("directory", "legacysurvey")).fetches


def test_tables_come_from_the_environment_and_go_back_to_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYDELTA_TEMPLATES__PROVIDERS", "hips,directory")
    monkeypatch.setenv(
        "SKYDELTA_TEMPLATES__HIPS", '[{"band": "r", "survey": "CDS/P/DSS2/red", "asinh": false}]'
    )
    monkeypatch.setenv("SKYDELTA_TEMPLATES__BANDS", '{"clear": "r", "B": {"hips": "g"}}')
    stars = '{"file": "/data/stars.csv", "magnitude": "{band}", "brighter_than": 14}'
    monkeypatch.setenv("SKYDELTA_TEMPLATES__STAR_MASK", stars)
    settings = load()
    assert settings.templates.hips[0].survey == "CDS/P/DSS2/red"
    path = tmp_path / "again.toml"
    path.write_text(as_toml(settings))
    assert settings.templates.star_mask is not None
    assert settings.templates.star_mask.magnitude == "{band}"
    for name in ("PROVIDERS", "HIPS", "BANDS", "STAR_MASK"):
        monkeypatch.delenv(f"SKYDELTA_TEMPLATES__{name}")
    assert load(path).templates == settings.templates


def test_the_cache_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/observatory")
    assert TemplateSettings().cache == Path("/var/cache/observatory/skydelta/templates")
