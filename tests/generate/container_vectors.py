"""Makes the container's test vectors: one scenario per file, the same bytes every time.

    python -m tests.generate.container_vectors

A vector is a JSON file in ``tests/vectors/container``:

    rules       the rules of spec/container.md that it shows
    scenario    what happened to the container
    image       the whole container, xz-compressed, base64
    expect      either sections: name to blob (hexadecimal), "unwritten" or "corrupt",
                with generation, root (hexadecimal; null if unverified) and clean;
                or error: the class of the failure

What a scenario is expected to hold is written down here by hand.
"""

from __future__ import annotations

import base64
import json
import lzma
import os
import random
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from blobstore.container.authentication import Authenticator
from blobstore.container.open_container import open_container
from formats.container.decoder import decode_header
from formats.container.model import Kind
from formats.devices.device import MemoryDevice
from tests.support.devices import RecordingDevice
from tests.support.stores import CORRUPT, UNWRITTEN, Contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.store.store import Store

DIRECTORY = Path(__file__).resolve().parents[1] / "vectors" / "container"

BLOCK = 512

FIRST, SECOND, THIRD = b"first state", b"second state", b"third state" * 40
FIXED = b"f" * 90

#: What `closed` holds.
CLOSED: Contents = {"tpm": THIRD, "vpd": b"\x82", "fixed": FIXED}


@dataclass(frozen=True)
class Scenario:
    """What a vector shows; ``expect`` is what the sections hold, or an error's class."""

    rules: str
    text: str
    make: Callable[[], bytes]
    expect: Contents | str


SPECS = (spec("tpm", 600, FIRST), spec("vpd", 40), spec("fixed", 90, FIXED, copies=1))
FRESH: Contents = {"tpm": FIRST, "vpd": UNWRITTEN, "fixed": FIXED}


def fresh(*, encrypted: bool = True, block_size: int = BLOCK) -> bytes:
    return image(SPECS, free=4096, encrypted=encrypted, block_size=block_size)


def after(
    *steps: Callable[[Store], object], close: bool = True, start: bytes | None = None
) -> bytes:
    """Return the container after some steps of a history."""
    device = MemoryDevice(fresh() if start is None else start)
    store = open_store(device)
    for step in steps:
        step(store)
    if close:
        store.close()
    return bytes(device.content)


def put(name: str, blob: bytes) -> Callable[[Store], object]:
    return lambda store: store.put(name, blob)


def cut(step: Callable[[Store], object], writes: int, sectors: int | None = None) -> bytes:
    """Return the content of the device if power fails in a step.

    Args:
        step: Done on a closed store whose sections were all written.
        writes: How many writes happened in whole.
        sectors: How many 512-byte sectors of the next one did.
    """
    before = closed()
    device = RecordingDevice(before)
    step(open_store(device))
    content = bytearray(before)
    for number, write in enumerate(device.writes):
        whole = write.data if number < writes else write.data[: 512 * (sectors or 0)]
        if number <= writes:
            content[write.offset : write.offset + len(whole)] = whole
    return bytes(content)


def closed() -> bytes:
    """Return a store in which every record was written, closed."""
    return after(put("tpm", SECOND), put("vpd", b"\x82"), put("tpm", THIRD))


def place(content: bytes, name: str, *, newest: bool = True) -> int:
    """Return the offset of a section's newest or older record."""
    section = open_container(MemoryDevice(content)).directory.sections[name]
    return (section.newest if newest else section.older).offset


def changed(content: bytes, offset: int, data: bytes) -> bytes:
    return content[:offset] + data + content[offset + len(data) :]


def flipped(content: bytes, offset: int) -> bytes:
    return changed(content, offset, bytes([content[offset] ^ 1]))


def replayed(name: str) -> bytes:
    """Return a closed store with one record set back to an older valid state."""
    older = after(put("tpm", b"a" * 600))
    newer = after(put("tpm", b"b" * 600), put("tpm", b"c" * 600), start=older)
    offset = place(older, name)
    return changed(newer, offset, older[offset : offset + 1536])


def headers_replayed() -> bytes:
    older = closed()
    newer = after(put("vpd", b"new"), start=older)
    torn = after(put("vpd", b"newer"), start=newer, close=False)
    return changed(torn, 0, older[: 2 * BLOCK])


def with_version(number: int) -> bytes:
    """Return a container whose headers are sound and of another version."""
    content = closed()
    for copy in (0, 1):
        offset = copy * BLOCK
        head = content[offset : offset + 512]
        decoded = decode_header(head, copy)
        other = head.replace(b"blobstore\x02\x01\x01", b"blobstore\x02\x01" + bytes([number]))
        sealed = Authenticator.of(decoded.header).with_check(offset, other, decoded.check_start)
        content = changed(content, offset, sealed)
    return content


def resize(store: Store) -> None:
    store.register("tpm", 1000)


def delete(name: str) -> Callable[[Store], object]:
    return lambda store: store.delete(name)


def rename(name: str, new: str) -> Callable[[Store], object]:
    return lambda store: store.rename(name, new)


def create(store: Store) -> None:
    store.register("new", 100, type="label")


def together(store: Store) -> None:
    """Change every section, and make one, in one commit."""
    with store.transaction() as changes:
        changes.put("tpm", SECOND)
        changes.rename("vpd", "renamed")
        changes.register("new", 100)
        changes.put("new", b"n")


def single_created_torn() -> bytes:
    """Return a section of one copy that was made with its blob, and of which that is torn."""

    def create_single(store: Store) -> None:
        with store.transaction() as changes:
            changes.register("new", 900, copies=1)
            changes.put("new", b"n" * 900)

    return cut(create_single, writes=2, sectors=2)


def grown(writes: int | None = None) -> bytes:
    """Return a store that grew, or power failed after so many writes of growing."""
    before = closed()
    device = RecordingDevice(before, resizable=True)
    open_store(device).grow(len(before) + 2048)
    content = bytearray(before).ljust(len(device.content), b"\0")
    for write in device.writes[:writes]:
        content[write.offset : write.offset + len(write.data)] = write.data
    return bytes(content)


def in_window(*, in_place: bool, close: bool) -> bytes:
    """Return a store with a window that was written to, and perhaps closed."""
    device = MemoryDevice(image([spec("flash", 1100, kind=Kind.WINDOW)], block_size=BLOCK))
    store = open_store(device)
    with store.window("flash") as window:
        window.write(0, b"before")
    window = store.window("flash", in_place=in_place)
    window.write(1000, b"end")
    window.flush()
    if close:
        window.close()
        store.close()
    return bytes(device.content)


WINDOW = b"before".ljust(1000, b"\0") + b"end".ljust(100, b"\0")


def single_copy_torn() -> bytes:
    content = closed()
    return changed(content, place(content, "fixed") + 512, b"torn" * 10)


def align() -> bytes:
    return image([spec("n" * 37, 5, b"align")], block_size=BLOCK)


def damaged(name: str, at: int, *, newest: bool = True) -> bytes:
    content = closed()
    return flipped(content, place(content, name, newest=newest) + at)


def head_lost() -> bytes:
    content = closed()
    return changed(content, place(content, "tpm"), bytes(512))


def free_head_lost(content: bytes) -> bytes:
    (offset,) = open_container(MemoryDevice(content)).directory.free
    return changed(content, offset, bytes(512))


def both_headers_damaged() -> bytes:
    return changed(changed(closed(), 60, bytes(300)), BLOCK + 60, bytes(300))


def replayed_and_flipped() -> bytes:
    content = replayed("tpm")
    (offset,) = open_container(MemoryDevice(closed())).directory.free
    return flipped(content, offset + 20)


SCENARIOS: dict[str, Scenario] = {
    "fresh": Scenario("C3 C11 C59", "made and not touched", fresh, FRESH),
    "sha256": Scenario(
        "C20 C25",
        "in the clear, authenticated by hashes",
        lambda: fresh(encrypted=False),
        FRESH,
    ),
    "block-4096": Scenario("C4 C8", "blocks of 4096", lambda: fresh(block_size=4096), FRESH),
    "closed": Scenario("C31 C58", "puts, then closed", closed, CLOSED),
    "unclean": Scenario(
        "C44 C49",
        "a complete put, then killed",
        lambda: after(put("vpd", b"v"), close=False),
        {**FRESH, "vpd": b"v"},
    ),
    "empty-blob": Scenario(
        "C11",
        "an empty blob is not an unwritten one",
        lambda: after(put("vpd", b"")),
        {**FRESH, "vpd": b""},
    ),
    "align": Scenario("C7", "a name that needs align", align, {"n" * 37: b"align"}),
    "created": Scenario(
        "C52", "a section was created", lambda: after(create), {**FRESH, "new": UNWRITTEN}
    ),
    "resized": Scenario(
        "C55 C56", "a section was moved to a larger extent", lambda: after(resize), FRESH
    ),
    "torn-put": Scenario(
        "C42 C44",
        "power failed in a put: a new head before an old blob",
        lambda: cut(put("tpm", b"x" * 600), writes=0, sectors=1),
        CLOSED,
    ),
    "put-not-begun": Scenario(
        "C31",
        "power failed in a put: an old head before a new blob",
        lambda: damaged("tpm", 515, newest=False),
        CLOSED,
    ),
    "torn-single-copy": Scenario(
        "C32 C45",
        "power failed in a put to a single copy: an old head before a new blob",
        single_copy_torn,
        {**CLOSED, "fixed": CORRUPT},
    ),
    "create-in-free-space": Scenario(
        "C14 C52",
        "power failed when the records of a new section were still inside the free item",
        lambda: cut(create, writes=2),
        CLOSED,
    ),
    "create-lost-in-free-space": Scenario(
        "C14 C43 C46",
        "the same, and the head of the free item is gone",
        lambda: free_head_lost(cut(create, writes=2)),
        CLOSED,
    ),
    "create-void": Scenario(
        "C46 C52",
        "power failed when the new extent was void",
        lambda: cut(create, writes=3),
        CLOSED,
    ),
    "create-not-closed": Scenario(
        "C44 C52",
        "power failed when the section was there and D was not written",
        lambda: cut(create, writes=4),
        {**CLOSED, "new": UNWRITTEN},
    ),
    "resize-void": Scenario(
        "C46 C55",
        "power failed before the commit that moves a section",
        lambda: cut(resize, writes=3),
        CLOSED,
    ),
    "resize-torn": Scenario(
        "C44 C46 C55",
        "power failed in the commit that moves a section",
        lambda: cut(resize, writes=3, sectors=1),
        CLOSED,
    ),
    "resize-not-released": Scenario(
        "C47 C55",
        "power failed when the section had two extents",
        lambda: cut(resize, writes=6),
        CLOSED,
    ),
    "resize-half-released": Scenario(
        "C46 C56",
        "power failed when the old extent was void",
        lambda: cut(resize, writes=8),
        CLOSED,
    ),
    "deleted": Scenario(
        "C53 C56",
        "sections of two copies and of one were deleted",
        lambda: after(delete("tpm"), delete("fixed"), start=closed()),
        {"vpd": b"\x82"},
    ),
    "deleted-not-released": Scenario(
        "C47 C53",
        "power failed when the tombstone was there",
        lambda: cut(delete("tpm"), writes=1),
        {"vpd": b"\x82", "fixed": FIXED},
    ),
    "renamed": Scenario(
        "C54",
        "a section has another name, and its older copy the old one",
        lambda: after(rename("tpm", "nvram"), start=closed()),
        {"nvram": THIRD, "vpd": b"\x82", "fixed": FIXED},
    ),
    "transaction": Scenario(
        "C31 C52 C54",
        "one commit put to, renamed and created sections",
        lambda: after(together, start=closed()),
        {"tpm": SECOND, "renamed": b"\x82", "fixed": FIXED, "new": b"n"},
    ),
    "transaction-torn": Scenario(
        "C31 C44 C46",
        "the same, and one of its three records did not land",
        lambda: cut(together, writes=5),
        CLOSED,
    ),
    "single-copy-created-torn": Scenario(
        "C32 C44 C46",
        "power failed when a section of one copy was made with its blob",
        single_created_torn,
        CLOSED,
    ),
    "grown": Scenario("C57", "the container grew", grown, CLOSED),
    "grown-item-only": Scenario(
        "C57", "power failed when the grown item was written", lambda: grown(1), CLOSED
    ),
    "grown-first-header": Scenario(
        "C40 C57", "power failed when one header copy was written", lambda: grown(2), CLOSED
    ),
    "window": Scenario(
        "C62",
        "a window was written to, and committed what differs",
        lambda: in_window(in_place=False, close=True),
        {"flash": WINDOW},
    ),
    "window-in-place": Scenario(
        "C62",
        "a window was written in place, and closed",
        lambda: in_window(in_place=True, close=True),
        {"flash": WINDOW},
    ),
    "window-in-place-killed": Scenario(
        "C62",
        "a window was being written in place",
        lambda: in_window(in_place=True, close=False),
        {"flash": CORRUPT},
    ),
    "header-copy-0-damaged": Scenario(
        "C40", "the first header copy is damaged", lambda: flipped(closed(), 100), CLOSED
    ),
    "header-copy-1-damaged": Scenario(
        "C40", "the second header copy is damaged", lambda: flipped(closed(), BLOCK + 100), CLOSED
    ),
    "headers-damaged": Scenario(
        "C40", "most of both header copies is lost", both_headers_damaged, "ContainerError"
    ),
    "head-damaged": Scenario(
        "C67 C71",
        "a bit is flipped in the head of a record",
        lambda: damaged("tpm", 90),
        CLOSED,
    ),
    "head-lost": Scenario(
        "C43 C67",
        "the head of a newest record is gone, framing and all: nothing is known to be fresh",
        head_lost,
        dict.fromkeys(CLOSED, CORRUPT),
    ),
    "free-head-lost": Scenario(
        "C43 C67",
        "the head of the free item is gone; the root proves the rest",
        lambda: free_head_lost(closed()),
        CLOSED,
    ),
    "record-replayed-and-flip": Scenario(
        "C48 C67",
        "a record is set back, and a bit flipped in the head of the free item",
        replayed_and_flipped,
        "CorruptStoreError",
    ),
    "blob-damaged": Scenario(
        "C45",
        "a blob is damaged after a close",
        lambda: damaged("tpm", 600),
        {**CLOSED, "tpm": CORRUPT},
    ),
    "record-replayed": Scenario(
        "C48",
        "a record was set back to an older valid state",
        lambda: replayed("tpm"),
        "CorruptStoreError",
    ),
    "headers-replayed": Scenario(
        "C48",
        "both headers of an unclosed store were set back; what is newer attests to itself",
        headers_replayed,
        {**CLOSED, "vpd": b"newer"},
    ),
    "version-2": Scenario(
        "C15", "a container of another version", lambda: with_version(2), "UnsupportedError"
    ),
    "truncated": Scenario(
        "C2",
        "the device ends before the container",
        lambda: closed()[:-512],
        "TruncatedImageError",
    ),
    "blank": Scenario("C40", "only zeros", lambda: bytes(8192), "EmptyImageError"),
    "foreign": Scenario("C40", "something else", lambda: b"#!/bin/sh\n" * 800, "ForeignImageError"),
}


@contextmanager
def deterministic(seed: str) -> Iterator[None]:
    """Let ids and keys follow from the name of the scenario."""
    generator = random.Random(seed)
    with mock.patch.object(os, "urandom", generator.randbytes):
        yield


def vector(name: str) -> dict[str, Any]:
    """Return one vector as it is written."""
    scenario = SCENARIOS[name]
    with deterministic(name):
        content = scenario.make()
    expect: dict[str, Any] = {"error": scenario.expect}
    if not isinstance(scenario.expect, str):
        info = open_store(content, read_only=True).info()
        expect = {
            "sections": {
                name: blob.hex() if isinstance(blob, bytes) else blob
                for name, blob in scenario.expect.items()
            },
            "generation": info.generation,
            "root": info.root.hex() if info.root else None,
            "clean": info.clean,
        }
    packed = lzma.compress(content, format=lzma.FORMAT_XZ, preset=9)
    return {
        "rules": scenario.rules.split(),
        "scenario": scenario.text,
        "expect": expect,
        "image": base64.b64encode(packed).decode(),
    }


def main() -> None:
    """Write all vectors."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name in SCENARIOS:
        text = json.dumps(vector(name), indent=1, ensure_ascii=False) + "\n"
        (DIRECTORY / f"{name}.json").write_text(text)


if __name__ == "__main__":
    main()
