"""P10, P12, P13: which texts are places, which name one place, and where owners are found."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

import blobstore
from blobstore.image.place import entry_of, is_file, is_same_place
from formats.errors import ArgumentError


@pytest.mark.parametrize(
    "text",
    ["nbd://host/x", "NBDS://host/", "nbd+unix:///?socket=s", "rbd:pool/image", "rbd:p/i@s:id=x"],
)
def test_p10_what_begins_like_a_place_is_one(text: str) -> None:
    place = blobstore.place_of(text)
    assert isinstance(place, blobstore.RemotePlace)
    assert place == text
    assert blobstore.place_of(place) is place
    assert blobstore.place_of(Path(text)) == Path(text)  # a Path is a file
    assert not is_file(text)


@pytest.mark.parametrize(
    "text", ["image", "./rbd:x", "/rbd:pool/x", "nbd", "nbd:host:1", "RBD:p/i", "file://x", ""]
)
def test_p10_everything_else_is_a_file(text: str) -> None:
    assert blobstore.place_of(text) == Path(text)
    assert is_file(text)


@pytest.mark.parametrize("text", ["rbd:", "nbd:///x", "nbd+ssh://x/y", "nbd+unix:///x"])
def test_p10_what_begins_like_a_place_and_is_none_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError):
        blobstore.place_of(text)


def test_p12_one_place_may_be_written_in_several_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "socket")
    (tmp_path / "conf").symlink_to(tmp_path / "ceph.conf")
    monkeypatch.setenv("CEPH_CONF", str(tmp_path / "ceph.conf"))
    monkeypatch.chdir(tmp_path)
    for one, other in (
        ("nbd://host/x", "nbds://HOST:10809/x"),
        ("nbd://host/a%2Fb", "nbd://host/a/b"),
        (f"nbd+unix:///x?socket={tmp_path}/socket", "nbd+unix:///x?socket=link"),
        ("rbd:p/i", f"rbd:p/i:conf={tmp_path}/conf:id=me"),
        ("image", str(tmp_path / "image")),
    ):
        assert is_same_place(one, other)
        assert blobstore.is_same_file(other, one)
    for one, other in (
        ("nbd://host/x", "nbd://host/X"),
        ("nbd://host/x", "nbd://host:1/x"),
        ("rbd:p/i", "rbd:p/i@s"),
        ("rbd:p/i", "rbd:p/i:conf=other"),
        ("rbd:p/i", "./rbd:p/i"),
    ):
        assert not is_same_place(one, other)


def test_p13_the_entry_is_a_hash_of_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOBSTORE_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("CEPH_CONF", raising=False)

    def name(identity: str) -> Path:
        return tmp_path / f"{sha256(identity.encode()).hexdigest()[:32]}.sock"

    assert entry_of("nbd://Host/x") == name("nbd:host:10809:x")
    socket = tmp_path / "s"
    assert entry_of(f"nbd+unix:///x?socket={socket}") == name(f"nbd+unix:{socket}:x")
    conf = tmp_path / "conf"
    assert entry_of(f"rbd:p/i:conf={conf}") == name(f"rbd:p/i of {conf}")
    assert entry_of("rbd:p/i@s:conf=/c") == name("rbd:p/i@s of /c")
