"""Looks up how framed Avro events were written, in a registry that speaks Confluent's REST API.

A schema never changes under its id, so each is asked for once. A registry that does not answer is
left alone for a while, longer each time; who asks meanwhile is told so at once. Answers are waited
for in the caller's thread, at most ``timeout_seconds``.

https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import fastavro
import requests
from fastavro.schema import SchemaParseException, UnknownType
from urllib3.exceptions import HTTPError

from core.errors import InvalidEvent
from service.avro_safety import refuse_dangerous_schema
from service.event_wire import SchemaUnavailable
from service.registry_settings import RegistrySettings

logger = logging.getLogger(__name__)

_ACCEPT = "application/vnd.schemaregistry.v1+json"
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 30.0
_NOT_THERE = (40401, 40402, 40403)  # subject, version, schema; a plain 404 is a wrong address
_LARGEST_ANSWER = 4_000_000  # bytes
_MOST_REFERENCES = 100
_REMEMBER_UNKNOWN_SECONDS = 30.0  # registries have replicas that lag behind


class SchemaRegistry:
    """A client of a schema registry, with a cache.

    Parameters
    ----------
    settings : RegistrySettings
        With a ``url``.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self, settings: RegistrySettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        assert settings.url is not None
        self._url = settings.url.rstrip("/")
        self._timeout = settings.timeout_seconds
        self._clock = clock
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no .netrc that the settings do not name
        self._session.headers["Accept"] = _ACCEPT
        if settings.username is not None and settings.password is not None:
            secret = settings.password.get_secret_value()
            # as bytes, since requests would encode text as Latin-1
            credentials = settings.username.encode(), secret.encode()
            self._session.auth = credentials  # type: ignore[assignment]
        if settings.ca_file is not None:
            self._session.verify = str(settings.ca_file)
        self._schemas: dict[int, dict[str, Any]] = {}
        self._unknown: dict[int, tuple[float, str]] = {}
        self._away: tuple[float, str] | None = None
        self._wait = _FIRST_WAIT

    def schema(self, schema_id: int) -> dict[str, Any]:
        """Return the schema of an id, as fastavro wants it.

        Raises
        ------
        InvalidEvent
            If the registry has no such id, or it is no Avro schema that may be used.
        SchemaUnavailable
            If the registry does not answer, or not us; asking again may help.
        """
        found = self._schemas.get(schema_id)
        if found is not None:
            return found
        until, said = self._unknown.get(schema_id, (0.0, ""))
        if self._clock() < until:
            raise InvalidEvent(said)
        try:
            found = self._fetch(schema_id)
        except InvalidEvent as error:
            self._unknown[schema_id] = self._clock() + _REMEMBER_UNKNOWN_SECONDS, str(error)
            raise
        self._schemas[schema_id] = found
        return found

    def _fetch(self, schema_id: int) -> dict[str, Any]:
        answer = self._get(f"/schemas/ids/{schema_id}")
        if answer is None:
            raise InvalidEvent(f"the registry {self._url} does not know the id")
        named: dict[str, Any] = {}
        parsed = self._parse(answer, named, set())
        logger.info("schema %d of the events: %s", schema_id, parsed.get("name", "no record"))
        return parsed

    def _parse(
        self, answer: dict[str, Any], named: dict[str, Any], seen: set[tuple[str, int]]
    ) -> dict[str, Any]:
        """Return a parsed schema; the types that it refers to are put into ``named`` before."""
        kind = answer.get("schemaType", "AVRO")
        if kind != "AVRO":
            raise InvalidEvent(f"the registry has a schema of type {kind} there, not AVRO")
        for subject, version in _references(answer):
            if (subject, version) in seen:
                continue
            seen.add((subject, version))
            if len(seen) > _MOST_REFERENCES:
                raise InvalidEvent("its schema refers to too many others")
            path = f"/subjects/{quote(subject, safe='')}/versions/{version}"
            referred = self._get(path)
            if referred is None:
                raise InvalidEvent(f"its schema refers to {subject} {version}, which is not there")
            self._parse(referred, named, seen)
        try:
            schema = json.loads(answer["schema"])
            refuse_dangerous_schema(schema)
            parsed = fastavro.parse_schema(schema, named_schemas=named)
        except (SchemaParseException, UnknownType) as error:
            raise InvalidEvent(f"its schema is not sound: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise InvalidEvent(f"its schema cannot be read: {error}") from None
        if not isinstance(parsed, dict):
            raise InvalidEvent("its schema is not that of a record")
        return parsed

    def _get(self, path: str) -> dict[str, Any] | None:
        """Return an answer, None where there is no such thing."""
        if self._away is not None and self._clock() < self._away[0]:
            raise SchemaUnavailable(self._away[1])
        try:
            with self._session.get(
                self._url + path, timeout=self._timeout, allow_redirects=False, stream=True
            ) as response:
                content = response.raw.read(_LARGEST_ANSWER + 1, decode_content=True)
                status = response.status_code
        except requests.exceptions.SSLError:
            raise self._gone("no TLS connection: check registry.ca_file and registry.url") from None
        except (requests.RequestException, OSError, HTTPError) as error:
            raise self._gone(f"it does not answer ({type(error).__name__})") from None
        answer = _as_object(content)
        if status == 404 and answer is not None and answer.get("error_code") in _NOT_THERE:
            self._back()
            return None
        if status in (401, 403):
            raise self._gone(
                f"it refuses us ({status}): check registry.username and registry.password"
            )
        if status != 200 or answer is None:
            raise self._gone(f"it answers {status} without a schema: check registry.url")
        self._back()
        return answer

    def _gone(self, why: str) -> SchemaUnavailable:
        said = f"the schema registry {self._url} is of no help: {why}; events wait for it"
        if self._away is None or self._away[1] != said:
            logger.warning("%s", said)
        self._away = self._clock() + self._wait, said
        self._wait = min(_LONGEST_WAIT, self._wait * 2)
        return SchemaUnavailable(said)

    def _back(self) -> None:
        if self._away is not None:
            logger.info("the schema registry %s answers again", self._url)
        self._away = None
        self._wait = _FIRST_WAIT


def _references(answer: dict[str, Any]) -> list[tuple[str, int]]:
    """Return subject and version of each schema that a schema refers to."""
    listed = answer.get("references") or ()
    try:
        return [(str(each["subject"]), int(each["version"])) for each in listed]
    except (KeyError, TypeError, ValueError):
        raise InvalidEvent("its schema cannot be read: its references are unsound") from None


def _as_object(content: bytes) -> dict[str, Any] | None:
    if len(content) > _LARGEST_ANSWER:
        return None
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
