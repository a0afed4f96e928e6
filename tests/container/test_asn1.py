"""The container is one DER value at every moment between commits (C1), by foreign readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from formats.container.asn1 import require_canonical
from formats.container.model import BLOCK_SIZES
from formats.devices.device import MemoryDevice
from formats.errors import FormatError
from tests.support import asn1
from tests.support.stores import image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from blobstore.store.store import Store

SPECS = [
    spec("a", 700, b"first"),
    spec("n" * 37, 5, copies=1),  # a name whose length needs align (C7)
    spec("é" * 60, 100_000),
]

STEPS: list[Callable[[Store], object]] = [
    lambda store: store.put("a", b"x" * 700),
    lambda store: store.put("a", b""),
    lambda store: store.register("new", 3000),
    lambda store: store.put("new", b"n" * 3000),
    lambda store: store.register("a", 5000),
    lambda store: store.put("é" * 60, b"large" * 20_000),
    lambda store: store.close(),
]


def states(block_size: int, *, encrypted: bool) -> list[bytes]:
    """Return the container after each step of a history."""
    device = MemoryDevice(image(SPECS, block_size=block_size, free=300_000, encrypted=encrypted))
    found = [bytes(device.content)]
    store = open_store(device)
    for step in STEPS:
        step(store)
        found.append(bytes(device.content))
    return found


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_c1_a_strict_reader_takes_it_after_every_step(block_size: int, encrypted: bool) -> None:
    for container in states(block_size, encrypted=encrypted):
        items = asn1.strict(container)
        first, second, *others = items
        assert isinstance(first, asn1.Header)
        assert isinstance(second, asn1.Header)
        assert all(isinstance(item, asn1.Record | asn1.Free) for item in others)


def test_c1_the_published_module_describes_it() -> None:
    aligned = 0
    for container in states(512, encrypted=True):
        items = asn1.compiled(container)
        names = [item["meta"]["name"] for kind, item in items if kind == "record"]
        assert set(names) >= {spec.name for spec in SPECS}
        assert [kind for kind, _ in items[:2]] == ["header", "header"]
        aligned += sum("align" in item for kind, item in items if kind == "record")
    assert aligned


@pytest.mark.interop
def test_c1_openssl_lists_it(tmp_path: Path) -> None:
    path = tmp_path / "container"
    for container in states(4096, encrypted=False):
        path.write_bytes(container)
        listed = asn1.openssl(path)
        assert listed.startswith("    0:d=0  hl=5 l=")
        assert "appl [ 19 ]" in listed
        assert "UTF8STRING        :blobstore" in listed
        depth_one = [line for line in listed.splitlines() if ":d=1 " in line]
        assert len(depth_one) == len(asn1.strict(container))


def test_the_second_reader_refuses_what_is_not_canonical() -> None:
    """asn1crypto alone takes these; the guard does not."""
    meta = bytes.fromhex("30 80 04 00 00 00")
    for encoding in (b"", b"\x05\x00", meta, b"\x30\x03\x02\x01\x01", b"\xa0\x00"):
        with pytest.raises(FormatError, match="C1"):
            require_canonical(encoding)
