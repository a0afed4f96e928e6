"""P1 to P3: places by their names; and the page about them."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest

import blobstore
from blobstore.image.remote.nbd_connection import NbdAddress
from blobstore.image.remote.places import address_of
from blobstore.image.remote.rbd_disk import RbdAddress
from formats.errors import ArgumentError
from tests.nbd.servers import nbdkit

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("nbd://host/name", NbdAddress(socket=("host", 10809), export="name")),
        ("nbd://[::1]:7/", NbdAddress(socket=("::1", 7))),
        ("NBD://host", NbdAddress(socket=("host", 10809))),
        ("nbd://host/a%2Fb", NbdAddress(socket=("host", 10809), export="a/b")),
        (
            "nbd+unix:///x%20y?socket=/run/a%3Fb",
            NbdAddress(socket=Path("/run/a?b"), export="x y"),
        ),
        ("nbd+unix:///?socket=relative", NbdAddress(socket=Path("relative").absolute())),
        ("rbd:pool/image", RbdAddress(pool="pool", image="image")),
        (
            "rbd:pool/image@then:conf=/etc/c.conf:id=me",
            RbdAddress(pool="pool", image="image", snapshot="then", conf="/etc/c.conf", user="me"),
        ),
        (r"rbd:pool/a\:b", RbdAddress(pool="pool", image="a:b")),
    ],
)
def test_p2_p3_a_place_is_what_its_text_says(place: str, expected: NbdAddress | RbdAddress) -> None:
    assert address_of(place) == expected


def test_p2_an_s_means_encryption() -> None:
    found = address_of("nbds://host/x")
    assert isinstance(found, NbdAddress)
    assert found.tls is not None
    context = found.tls.context()
    assert context.check_hostname
    assert context.verify_mode is ssl.VerifyMode.CERT_REQUIRED


@pytest.mark.parametrize(
    "place",
    [
        *("", "image", "/dev/nbd0", "http://host/x", "nbd:host", "nbd:///x", "nbd://host:x/"),
        *("nbd://host/?socket=x", "nbd+unix:///x", "nbd+unix://host/x?socket=y"),
        *("nbd://host/x?tls=y", "nbd://host/x#y", "nbd://host:99999/", "nbd://host/%00"),
        *(
            "rbd:",
            "rbd:image",
            "rbd:pool/",
            "rbd:/image",
            "rbd:p/i/x",
            "rbd:p/i:mon=x",
            "rbd:p/i:id=",
        ),
    ],
)
def test_p1_what_is_not_a_place_is_the_caller_s_mistake(place: str) -> None:
    with pytest.raises(ArgumentError, match=r"P[123]"):
        blobstore.open_remote(place)


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "remote.md").read_text(), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    with nbdkit(tmp_path / "disk.sock", "memory", str(4 << 20)):
        exec(compile(block, "docs/remote.md", "exec"), {})
        with (
            blobstore.open_remote("nbd+unix:///?socket=disk.sock") as disk,
            blobstore.Store.on_device(disk, encrypted=False, read_only=True) as store,
        ):
            assert store.get("tpm-permanent-state") == b"state"
