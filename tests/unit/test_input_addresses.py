"""What an event may have fetched: what is below the prefixes, and every trick to get elsewhere."""

from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InvalidEvent
from service.input_addresses import allowed_address, is_address, parse_prefix, shown

PREFIXES = [
    parse_prefix(text)
    for text in (
        "https://data.example.org/night/",
        "http://127.0.0.1:8000/in/",
        "s3://camera/raw/",
        "https://[::1]:8443/a b/".replace(" ", "%20"),
    )
]


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("https://data.example.org/night/a.fits", None),
        ("HTTPS://Data.Example.org:443/night/1/a.fits.fz", "https://data.example.org/night/1/a.fits.fz"),
        ("https://data.example.org/night/a%20b+%C3%A9.fits", None),
        ("https://data.example.org/%6eight/a.fits", "https://data.example.org/night/a.fits"),
        ("https://data.example.org/night/..a/b..fits", None),
        ("http://127.0.0.1:8000/in/x", None),
        ("https://[::1]:8443/a%20b/c.fits", None),
        ("s3://camera/raw/2026/a%20b.fits", None),
    ],
)  # fmt: skip
def test_addresses_below_a_prefix(uri: str, url: str | None) -> None:
    assert is_address(uri)
    assert allowed_address(uri, PREFIXES).url == (url or uri)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("https://data.example.org/nights/a.fits", "not below"),
        ("https://data.example.org/night", "not below"),
        ("https://data.example.org/", "names a folder"),
        ("https://data.example.org", "no path"),
        ("https://data.example.org/night/", "names a folder"),
        ("http://data.example.org/night/a.fits", "not below"),
        ("https://data.example.org:8443/night/a.fits", "not below"),
        ("https://evil.org/night/a.fits", "not below"),
        ("https://data.example.org.evil.org/night/a.fits", "not below"),
        ("https://data.example.org./night/a.fits", "no host"),
        ("https://data.example.org@evil.org/night/a.fits", "user name"),
        ("https://evil.org@data.example.org/night/a.fits", "user name"),
        ("https://data.example.org:443@evil.org/night/a.fits", "user name"),
        ("https://data.example.org%2eevil.org/night/a.fits", "no host"),
        ("https://data.example.org#@evil.org/night/a.fits", "fragment"),
        ("https://data.example.org?@evil.org/night/a.fits", "fragment"),
        ("https://data.example.org\\@evil.org/night/a.fits", "user name"),
        ("https://data.example.org\\.evil.org/night/a.fits", "no host"),
        ("https://[::1]evil.org:8443/a%20b/c.fits", "no"),
        ("https://dаta.example.org/night/a.fits", "no host"),
        ("https:///night/a.fits", "no host"),
        ("https:/night/a.fits", "no host"),
        ("https:night/a.fits", "no host"),
        ("https://data.example.org:/night/a.fits", "no host"),
        ("https://data.example.org:99999/night/a.fits", "no address"),
        ("https://data.example.org/night/../secret", "'..'"),
        ("https://data.example.org/night/%2e%2e/secret", "'..'"),
        ("https://data.example.org/night/%2E./secret", "'..'"),
        ("https://data.example.org/night/%252e%252e/secret", "'..'"),
        ("https://data.example.org/night/%25252e%25252e/secret", "'..'"),
        ("https://data.example.org/night/..;x/secret", "'..'"),
        ("https://data.example.org/night/..%3bx/secret", "'..'"),
        ("https://data.example.org/night/..%2fsecret", "'..'"),
        ("https://data.example.org/night/a%2fb.fits", "hides a slash"),
        ("https://data.example.org/night/..%5csecret", "hides a slash"),
        ("https://data.example.org/night/a%00.fits", "hides a slash"),
        ("https://data.example.org/night/a%0d%0aHost:evil", "hides a slash"),
        ("https://data.example.org/night/./a.fits", "'.'"),
        ("https://data.example.org/night//a.fits", "two slashes"),
        ("https://data.example.org//night/a.fits", "two slashes"),
        ("https://data.example.org/night/a%ff.fits", "not UTF-8"),
        ("https://data.example.org/night/a.fits?x=1", "query"),
        ("https://data.example.org/night/a.fits#1", "fragment"),
        ("https://data.example.org/night/a b.fits", "characters"),
        ("https://data.example.org/night/a\n.fits", "characters"),
        ("https://data.example.org/night/" + "%25" * 1 + "25" * 9 + "41", "times"),
        ("s3://camera/raw2/a.fits", "not below"),
        ("s3://other/raw/a.fits", "not below"),
        ("s3://camera:80/raw/a.fits", "no bucket"),
        ("s3://key:secret@camera/raw/a.fits", "user name"),
        ("s3://camera/raw/../other/a.fits", "'..'"),
        ("s3://camera/raw/%2e%2e/a.fits", "'..'"),
        ("s3:///camera/raw/a.fits", "no bucket"),
        ("ftp://data.example.org/night/a.fits", "begins with none"),
    ],
)
def test_everything_else_is_refused(uri: str, said: str) -> None:
    with pytest.raises(InvalidEvent, match="mask_uri") as caught:
        allowed_address(uri, PREFIXES, "mask_uri")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_prefix_allows_nothing() -> None:
    with pytest.raises(InvalidEvent, match=r"input\.prefixes allows no address"):
        allowed_address("https://data.example.org/night/a.fits", [])


def test_passwords_and_tokens_are_not_repeated() -> None:
    for uri in (
        "https://me:secret@evil.org/a",
        "https://evil.org/a?token=secret",
        "s3://a:secret@b",
    ):
        assert "secret" not in shown(uri)
        with pytest.raises(InvalidEvent) as caught:
            allowed_address(uri, PREFIXES)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://host/path", "https://host", "/data/", "file:///data/", "https://a:b@host/x/",
        "https://host/x/?q", "https://host/../x/", "https://host//", "s3://bucket", "host/path/",
        "",
    ],
)  # fmt: skip
def test_what_is_no_prefix(text: str) -> None:
    with pytest.raises(ValueError, match=" "):
        parse_prefix(text)


PIECES = st.sampled_from(
    ["https", "http", "s3", "file", ":", "/", "//", "://", "@", "#", "?", ";", "\\", "..", ".",
     "%2e", "%2f", "%5c", "%252e", "%00", "data.example.org", "evil.org", "night", "raw", "camera",
     "in", "127.0.0.1:8000", ":8000", "a.fits", "%6e", "é", "\n", " ", "[::1]", ":443", "%25"]
)  # fmt: skip
BEGINNINGS = st.sampled_from(
    ["https://data.example.org/night/", "http://127.0.0.1:8000/in/", "s3://camera/raw/", ""]
)


@settings(max_examples=1500, deadline=None)
@given(BEGINNINGS, st.lists(PIECES, max_size=10).map("".join), st.text(max_size=5))
def test_what_is_allowed_stays_below_however_it_is_read(begin: str, middle: str, end: str) -> None:
    try:
        address = allowed_address(begin + middle + end, PREFIXES)
    except InvalidEvent:
        return
    parts = urlsplit(address.url)
    assert (parts.username, parts.password, parts.query, parts.fragment) == (None, None, "", "")
    assert f"{parts.scheme}://{parts.netloc}" in {
        "https://data.example.org", "http://127.0.0.1:8000", "s3://camera", "https://[::1]:8443"
    }  # fmt: skip
    path = parts.path
    for _ in range(12):  # whatever decodes it, and how often
        steps = path.replace("\\", "/").split("/")
        assert not {"..", "."} & {step.partition(";")[0] for step in steps}
        assert any(path.startswith(unquote(prefix.path)) for prefix in PREFIXES) or "%" in path
        path = unquote(path)
    assert address.name
