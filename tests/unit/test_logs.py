"""Log lines: JSON with the exposure's id, or a line for a person."""

import json
import logging
import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
from service import logs
logs.configure("INFO", sys.argv[1])
logger = logging.getLogger("service.test")
with logs.about_exposure("night/7"):
    logger.info("published %d", 3, extra={"stage": "detect", "seconds": 1.5})
logger.debug("not shown")
logging.getLogger("urllib3").info("not shown either")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("oh")
"""


def logged(style: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, style], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.mark.parametrize("style", ["json", "auto"])
def test_json_lines(style: str) -> None:
    first, second = [json.loads(line) for line in logged(style)]
    assert first["message"] == "published 3"
    assert first["level"] == "INFO"
    assert (first["exposure_id"], first["stage"], first["seconds"]) == ("night/7", "detect", 1.5)
    assert "exposure_id" not in second
    assert "ZeroDivisionError" in second["traceback"]


def test_human_lines() -> None:
    lines = logged("human")
    assert lines[0].endswith("INFO    published 3  [night/7]")
    assert "[night/7]" not in lines[1]


def test_importing_configures_nothing() -> None:
    assert not any(type(h).__module__ == "service.logs" for h in logging.getLogger().handlers)
