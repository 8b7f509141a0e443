"""Settings: file and environment, what is refused and in which words, and no secret in sight."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from service import cli
from service.kafka_settings import KafkaSettings
from service.settings import Settings
from service.settings_loading import SettingsError, load, sections, variable
from service.settings_report import as_toml, beyond_validation, markdown_table
from tests.kafka.certificates import CertificateAuthority


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("SKYDELTA_"):
            monkeypatch.delenv(name)


def config(folder: Path, text: str) -> Path:
    path = folder / "skydelta.toml"
    path.write_text(text)
    return path


def problems(path: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(path)
    return [str(problem) for problem in caught.value.problems]


def test_defaults_are_valid() -> None:
    settings = load()
    assert settings.topics.status == "exposure-status"
    assert settings.workers.threads_each >= 1


def test_environment_wins_over_the_file_key_by_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(tmp_path, '[kafka]\nbootstrap_servers = "file:1"\ngroup_id = "from-file"\n')
    monkeypatch.setenv("SKYDELTA_KAFKA__BOOTSTRAP_SERVERS", "environment:1")
    settings = load(path)
    assert settings.kafka.bootstrap_servers == "environment:1"
    assert settings.kafka.group_id == "from-file"


def test_file_is_found_through_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYDELTA_CONFIG", str(config(tmp_path, "[workers]\ncount = 7\n")))
    assert load().workers.count == 7


@pytest.mark.parametrize("written", ["/data,/more", '["/data", "/more"]'])
def test_lists_in_the_environment(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("SKYDELTA_INPUT__ROOTS", written)
    assert load().input.roots == (Path("/data"), Path("/more"))


def test_tables_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYDELTA_KAFKA__EXTRA", '{"linger.ms": 20}')
    assert load().kafka.extra == {"linger.ms": 20}
    monkeypatch.setenv("SKYDELTA_KAFKA__EXTRA", "linger.ms=20")
    (said,) = problems()
    assert said.startswith("SKYDELTA_KAFKA__EXTRA: kafka.extra: not valid JSON")


def test_every_problem_is_one_line_that_names_place_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(
        tmp_path,
        "[kafak]\nx = 1\n[topics]\nalets = 'x'\n[pipeline]\ncutout_size = 20\n"
        "[input]\nroots = ['data']\n",
    )
    monkeypatch.setenv("SKYDELTA_WORKERS__COUNT", "many")
    monkeypatch.setenv("SKYDELTA_WEB__PRT", "1")
    assert sorted(problems(path)) == sorted(
        [
            f"{path}: kafak: unknown key; did you mean kafka?",
            f"{path}: topics.alets: unknown key; did you mean topics.alerts?",
            f"{path}: pipeline.cutout_size: 20 is even; the candidate must be at the centre",
            f"{path}: input.roots: data is not an absolute path",
            "SKYDELTA_WORKERS__COUNT: workers.count: input should be a valid integer, got 'many'",
            "SKYDELTA_WEB__PRT: unknown setting; did you mean SKYDELTA_WEB__PORT?",
        ]
    )


def test_single_underscore_is_explained_and_other_variables_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SKYDELTA_TEST_BOOTSTRAP", "SKYDELTA_REQUIRE_KAFKA", "SKYDELTA_SERVICE_HOST"):
        monkeypatch.setenv(name, "x")
    load()
    monkeypatch.setenv("SKYDELTA_KAFKA_GROUP_ID", "x")
    assert problems() == [
        "SKYDELTA_KAFKA_GROUP_ID: unknown; did you mean SKYDELTA_KAFKA__GROUP_ID (two underscores)?"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[kafka\n", "is not valid TOML"),
        (None, "cannot be read: No such file"),
        ("[kafka]\nextra = {acks = 1}\n", "exactly-once publishing depends on it"),
        ("[kafka]\nextra = {'group.id' = 'x'}\n", "use kafka.group_id"),
        ("[kafka]\nsasl_mechanism = 'PLAIN'\n", "needs sasl_username and sasl_password"),
        ("[kafka]\nsecurity_protocol = 'sasl_ssl'\n", "needs a sasl_mechanism"),
        (
            "[kafka]\nsasl_mechanism = 'PLAIN'\nsasl_username = 'u'\nsasl_password = 'p'\n",
            "is not used with security_protocol plaintext",
        ),
        (
            "[kafka]\nsecurity_protocol = 'sasl_ssl'\nsasl_mechanism = 'OAUTHBEARER'\n",
            "needs oauth_token_url, oauth_client_id and oauth_client_secret",
        ),
        ("[kafka]\noauth_token_url = 'https://me:pw@id/token'\n", "oauth_token_url"),
        ("[kafka]\noauth_extensions = {a = 'b,c=d'}\n", "has a comma"),
        ("[kafka]\nssl_key_file = '/key.pem'\n", "need each other"),
        ("[kafka]\nsasl_password_file = '/nowhere'\n", "/nowhere cannot be read: No such file"),
        ("[registry]\nusername = 'u'\n", "username and password need each other"),
        ("[topics]\nalerts = 'exposures'\n", "every topic needs a name of its own"),
        ("[topics]\nalerts = 'a b'\n", "topics.alerts"),
        ("[pipeline]\nthreshold = nan\n", "pipeline.threshold"),
        ("[workers]\ncount = 0\n", "workers.count"),
    ],
)
def test_what_cannot_be(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "missing.toml" if text is None else config(tmp_path, text)
    (problem,) = problems(path)
    assert said in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("section", "key", "rest"),
    [
        ("kafka", "sasl_password", {}),
        ("kafka", "oauth_client_secret", {}),
        ("kafka", "ssl_key_password", {}),
        ("registry", "password", {"username": "u"}),
    ],
)
def test_each_secret_may_lie_in_a_file(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    section: str,
    key: str,
    rest: dict[str, str],
) -> None:
    for name, value in rest.items():
        monkeypatch.setenv(variable(section, name), value)
    secret = tmp_path / "secret"
    secret.write_text("pass wörd \r\n")
    monkeypatch.setenv(variable(section, f"{key}_file"), str(secret))
    settings = load()
    found = getattr(getattr(settings, section), key).get_secret_value()
    assert found == "pass wörd "  # only the line's end is not part of it
    written = as_toml(settings)
    assert found not in written
    assert load(config(tmp_path, written)) == settings

    monkeypatch.setenv(variable(section, key), "another")
    (said,) = problems()
    assert f"{key} and {key}_file are both given" in said
    assert "another" not in said


def test_every_secret_has_a_file_beside_it() -> None:
    found = 0
    for model in sections().values():
        names = list(model.model_fields)
        for name in names:
            if "SecretStr" in str(model.model_fields[name].annotation):
                assert names.index(f"{name}_file") < names.index(name)
                found += 1
    assert found == 4


def test_secret_file_must_hold_something(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    for content, said in ((b"\n", "is empty"), (b"\xff", "is not UTF-8")):
        secret.write_bytes(content)
        (problem,) = problems(config(tmp_path, f"[kafka]\nsasl_password_file = '{secret}'\n"))
        assert said in problem


SECRET = "do not tell"


def test_no_secret_in_reports_nor_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = config(
        tmp_path,
        f"[kafka]\nsasl_username = 'u'\nsasl_password = '{SECRET}'\n"
        f"ssl_key_password = '{SECRET}'\n"
        f"extra = {{'sasl.oauthbearer.config' = '{SECRET}', 'linger.ms' = 5}}\n",
    )
    settings = load(path)
    written = as_toml(settings)
    assert SECRET not in written
    assert SECRET not in repr(settings)
    values = tomllib.loads(written)
    assert values["kafka"]["extra"]["linger.ms"] == 5
    assert values["kafka"]["sasl_username"] == "u"
    path.write_text(f"[kafka]\nsasl_password = ['{SECRET}']\nextra = {{acks = '{SECRET}'}}\n")
    assert SECRET not in " ".join(problems(path))


def test_report_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    path = config(tmp_path, "[input]\nroots = ['/tmp']\n[packets]\nfilter_ids = {z = 4}\n")
    settings = load(path)
    assert load(config(tmp_path, as_toml(settings))) == settings


def test_table_has_every_setting_with_a_meaning() -> None:
    rows = markdown_table().splitlines()[2:]
    names = [(s, key) for s, model in sections().items() for key in model.model_fields]
    assert len(rows) == len(names)
    for row, (section, key) in zip(rows, names, strict=True):
        name, environment, default, meaning = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert name == f"`{section}.{key}`"
        assert environment == f"`{variable(section, key)}`"
        assert default
        assert meaning


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = cli.main(list(arguments))
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_check_config_says_ok_and_shows_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, f"[input]\nroots = ['{tmp_path}']\n[templates]\npath = '{tmp_path}'\n")
    code, out, err = run_cli(capsys, "check-config", "--config", str(path))
    assert (code, err) == (0, "")
    first, _, rest = out.partition("\n")
    assert first == "OK"
    assert tomllib.loads(rest)["templates"]["path"] == str(tmp_path)


def test_check_config_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, "[workers]\ncount = 0\ncuont = 1\n")
    code, out, err = run_cli(capsys, "check-config", "--config", str(path))
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"skydelta: {path}: workers.") for line in lines)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "input.roots: is empty"),
        ({"input": {"roots": ["/nowhere/at/all"]}}, "/nowhere/at/all is not a folder"),
        ({"templates": {"path": "/nowhere"}}, "templates.path: /nowhere is not a folder"),
        ({"kafka": {"ssl_ca_file": "/no.pem"}}, "kafka.ssl_ca_file: /no.pem is not a file"),
        ({"kafka": {"extra": {"lingr.ms": 1}}}, "kafka.extra: No such configuration property"),
        ({"pipeline": {"engines": ["stfu"]}}, "pipeline.engines: there is no engine 'stfu'"),
    ],
)
def test_what_only_a_look_around_finds(values: dict[str, Any], said: str) -> None:
    found = [str(problem) for problem in beyond_validation(Settings(**values))]
    assert any(said in problem for problem in found), found


def test_private_key_that_cannot_be_opened_is_found(tmp_path: Path) -> None:
    client = CertificateAuthority(tmp_path).issue("client", key_password="right")
    kafka = {"security_protocol": "ssl", "ssl_certificate_file": client.certificate}
    kafka |= {"ssl_key_file": client.key}

    def said(password: str) -> list[str]:
        settings = Settings(kafka=kafka | {"ssl_key_password": password})  # type: ignore[arg-type]
        return [str(p) for p in beyond_validation(settings) if p.key.startswith("kafka")]

    assert said("right") == []
    (problem,) = said("wrong")
    assert "kafka.ssl_key_file and kafka.ssl_key_password" in problem


def test_kafka_section_refuses_unknown_keys_on_its_own() -> None:
    with pytest.raises(ValueError, match="bootstrap"):
        KafkaSettings(bootstrap="x")  # type: ignore[call-arg]
