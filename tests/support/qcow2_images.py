"""Stores in qcow2 images, encrypted in each way there is, and how QEMU opens them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import blobstore as library
import luks
from tests.qcow2.support import assert_clean
from tests.support.foreign import run

if TYPE_CHECKING:
    from pathlib import Path


SECRET, OTHER = b"first passphrase", b"second passphrase"
KDF = luks.Pbkdf2("sha256", 1000)
#: How a qcow2 image is encrypted, and what `create` and `convert` call it.
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "clear": ({"encrypted": False}, "qcow2"),
    "own": ({"own_luks": True, "kdf": KDF}, "qcow2-luks"),
    "luks1": ({"luks_version": 1, "kdf": KDF}, "luks1-in-qcow2"),
    "luks2": ({"luks_version": 2, "kdf": KDF}, "luks2-in-qcow2"),
}


def secret_of(way: str) -> bytes | None:
    return None if way == "clear" else SECRET


def make(path: Path, way: str, **more: Any) -> library.Store:
    return library.create(
        path, {"a": 100_000}, secret_of(way), image_format="qcow2", **(WAYS[way][0] | more)
    )


def qemu_sees(path: Path, way: str, key: Path) -> list[str]:
    """Return how QEMU's tools name an image: with its key, if that is theirs to use."""
    if way != "own":
        return ["--image-opts", f"driver=qcow2,file.filename={path}"]
    secret = f"secret,id=s0,file={key}"
    return [
        *("--object", secret, "--image-opts"),
        f"driver=qcow2,encrypt.key-secret=s0,file.filename={path}",
    ]


def check(path: Path, way: str, key: Path) -> None:
    if way == "own":
        run("qemu-img", "check", *qemu_sees(path, way, key))
    else:
        assert_clean(path)
