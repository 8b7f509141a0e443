"""URIs to files: what is below the allowed folders, and every way out of them."""

import os
from pathlib import Path

import pytest

from core.errors import InputUnavailable, InvalidEvent, UnusableInput
from service.inputs import resolve


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "a b.fits").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "rootless").mkdir()
    (tmp_path / "rootless" / "x").write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    "uri", ["{root}/a b.fits", "file://{root}/a%20b.fits", "file:{root}/a%20b.fits",
            "file://localhost{root}/a%20b.fits", "{root}/../root/./a b.fits"]
)  # fmt: skip
def test_paths_and_file_uris(root: Path, uri: str) -> None:
    assert resolve(uri.format(root=root), [root]) == os.path.realpath(root / "a b.fits")


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "{root}/../secret",
        "file://{root}/../secret",
        "file://{root}/%2e%2e/secret",
        "{root}/link",
        "{root}/folder-link/secret",
        "{root}less/x",
        "{root}",
        "/",
    ],
)
def test_ways_out_are_refused(root: Path, uri: str) -> None:
    (root / "link").symlink_to(root.parent / "secret")
    (root / "folder-link").symlink_to(root.parent)
    with pytest.raises((InvalidEvent, UnusableInput)) as caught:
        resolve(uri.format(root=root), [root], "mask_uri")
    assert "mask_uri" in str(caught.value)
    if uri != "{root}":
        assert "leads out of the allowed folders" in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("a.fits", "relative"),
        ("../a.fits", "relative"),
        ("", "relative"),
        ("file:a.fits", "relative"),
        ("http://host/a.fits", "'http' is not supported"),
        ("s3://bucket/a.fits", "'s3' is not supported"),
        ("FTP://host/a.fits", "'ftp' is not supported"),
        ("file://other{root}/a.fits", "another host"),
        ("file://{root}/a.fits?x=1", "query"),
        ("file://{root}/a.fits#1", "fragment"),
        ("{root}/a\0.fits", "zero byte"),
        ("file://{root}/a%00.fits", "zero byte"),
        ("file://[broken/a.fits", "not a URI"),
    ],
)
def test_what_is_no_local_file(root: Path, uri: str, said: str) -> None:
    with pytest.raises(InvalidEvent, match=said):
        resolve(uri.format(root=root), [root])


def test_root_that_is_a_link_itself(root: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    assert resolve(f"{linked}/a b.fits", [linked]) == os.path.realpath(root / "a b.fits")


def test_no_root_allows_nothing(root: Path) -> None:
    with pytest.raises(InvalidEvent, match="allows no folder"):
        resolve(f"{root}/a b.fits", [])


@pytest.mark.parametrize("name", ["missing.fits", "a b.fits/below", "x" * 300])
def test_missing_file_may_come_later(root: Path, name: str) -> None:
    with pytest.raises(InputUnavailable) as caught:
        resolve(f"{root}/{name}", [root])
    assert caught.value.retriable


def test_pipes_are_not_opened(root: Path) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(UnusableInput, match="not a regular file"):
        resolve(f"{root}/pipe", [root])
