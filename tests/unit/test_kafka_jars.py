"""Kafka's jars: there whole or not at all, and fetched once however many ask."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.kafka.errors import BrokerUnavailable
from tests.kafka.jars import fetch_jars, find_java

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def pom(tmp_path: Path) -> Path:
    path = tmp_path / "pom.xml"
    path.write_text("<project/>")
    return path


def put_maven(folder: Path, body: str) -> None:
    """Write an `mvn` that notes each of its runs in ``runs`` and does ``body`` in ``$out``."""
    script = f"""\
    #!/bin/sh
    echo run >> {folder}/runs
    for argument in "$@"; do
        case $argument in -DoutputDirectory=*) out=${{argument#*=}} ;; esac
    done
    mkdir -p "$out"
    {body}
    """
    path = folder / "mvn"
    path.write_text(textwrap.dedent(script))
    path.chmod(0o755)


def with_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_failed_download_leaves_nothing_behind(
    tmp_path: Path, pom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_path(monkeypatch, tmp_path)
    put_maven(tmp_path, 'touch "$out/kafka_2.13-9.9.9.jar"; echo "[ERROR] no network"; exit 1')
    with pytest.raises(BrokerUnavailable, match="no network"):
        fetch_jars(pom, tmp_path / "libs")
    assert not list((tmp_path / "libs").rglob("*.jar"))


def test_download_that_was_killed_is_done_again(
    tmp_path: Path, pom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_path(monkeypatch, tmp_path)
    put_maven(tmp_path, 'touch "$out/kafka_2.13-9.9.9.jar" "$out/truncated.jar"; kill -9 $PPID')
    code = "import sys; from pathlib import Path; from tests.kafka.jars import fetch_jars;"
    code += "fetch_jars(Path(sys.argv[1]), Path(sys.argv[2]))"
    killed = subprocess.run(
        [sys.executable, "-c", code, pom, tmp_path / "libs"], cwd=REPOSITORY, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "libs").rglob("truncated.jar"))

    put_maven(tmp_path, 'touch "$out/kafka_2.13-9.9.9.jar"')
    jars = fetch_jars(pom, tmp_path / "libs")
    assert [jar.name for jar in jars.iterdir()] == ["kafka_2.13-9.9.9.jar"]
    assert not list((tmp_path / "libs").rglob("truncated.jar"))


def test_maven_that_brings_no_kafka_is_an_error(
    tmp_path: Path, pom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_path(monkeypatch, tmp_path)
    put_maven(tmp_path, 'touch "$out/slf4j-api.jar"')
    with pytest.raises(BrokerUnavailable, match="no jars"):
        fetch_jars(pom, tmp_path / "libs")


def test_another_version_is_fetched_anew_and_replaces_the_old(
    tmp_path: Path, pom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_path(monkeypatch, tmp_path)
    put_maven(tmp_path, 'touch "$out/kafka_2.13-9.9.9.jar"')
    first = fetch_jars(pom, tmp_path / "libs")
    assert fetch_jars(pom, tmp_path / "libs") == first
    assert (tmp_path / "runs").read_text().count("run") == 1
    pom.write_text("<project><!-- newer --></project>")
    second = fetch_jars(pom, tmp_path / "libs")
    assert second != first
    assert not first.exists()


def test_processes_that_ask_at_once_fetch_once(tmp_path: Path, pom: Path) -> None:
    put_maven(tmp_path, 'sleep 1; touch "$out/kafka_2.13-9.9.9.jar"')
    code = (
        "import sys; from pathlib import Path; from tests.kafka.jars import fetch_jars;"
        "sys.stdout.write(str(fetch_jars(Path(sys.argv[1]), Path(sys.argv[2]))))"
    )
    environment = os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = [sys.executable, "-c", code, str(pom), str(tmp_path / "libs")]
    asking = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment
        )
        for _ in range(3)
    ]
    answers = {process.communicate(timeout=60)[0] for process in asking}
    assert len(answers) == 1
    assert (Path(answers.pop()) / "kafka_2.13-9.9.9.jar").exists()
    assert (tmp_path / "runs").read_text().count("run") == 1


def test_java_comes_with_the_environment_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    said = subprocess.run([find_java(), "-version"], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0
    assert str(find_java()).startswith(sys.prefix)


def test_java_that_is_too_old_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert find_java() != old
