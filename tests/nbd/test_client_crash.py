"""A store and a LUKS header on an export: what is left when the server loses power (P4, N66, N77).

Everything runs over the wire, against a server that logs what reaches its disk. Each content that
a power cut of the server may have left shows the state acknowledged last, or the one being
written.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import luks
from blobstore.container.initialise import container_size, initialise
from blobstore.image.remote.nbd_disk import NbdDisk
from formats.devices.device import MemoryDevice
from formats.errors import FormatError
from formats.nbd.numbers import Command
from tests.luks.support import OTHER, PASSPHRASE, PBKDF2
from tests.nbd.recording import serving
from tests.store.test_crash import acknowledged, delete, put, register, rename, reopen, together
from tests.support.devices import ForcedWrite, crash_states
from tests.support.stores import contents, image, open_store, spec
from tests.support.windows import window_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from blobstore.store.store import Store
    from tests.support.stores import Contents

    Step = Callable[[Store], object]

pytestmark = pytest.mark.slow

SMALL = [spec("a", 2000), spec("b", 100, b"first")]


def commit_window(store: Store) -> None:
    window = store.window("w")
    window.write(700, b"window" * 100)
    window.flush()
    window.close()


SCENARIOS: dict[str, tuple[bytes, list[Step]]] = {
    "puts": (image(SMALL), [put("a", b"1" * 1500), put("a", b"2"), put("b", b""), reopen]),
    "several at once": (
        image(SMALL),
        [
            together(lambda c: c.put("a", b"1" * 900), lambda c: c.put("b", b"one")),
            together(lambda c: c.put("a", b"2"), lambda c: c.rename("b", "c")),
        ],
    ),
    "create and delete": (
        image(SMALL, free=8192),
        [register("new", 600), put("new", b"n"), delete("a"), register("c", 900), put("c", b"c")],
    ),
    "rename and resize": (
        image(SMALL, free=16384),
        [rename("b", "c"), register("a", 3000), put("a", b"1" * 3000)],
    ),
    "a window": (window_image(2700, b"\x55" * 2700), [commit_window, put("b", b"1"), reopen]),
}


@pytest.mark.parametrize("encrypted", [False, True], ids=["in the clear", "in a volume"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_p4_a_store_is_old_or_new(name: str, encrypted: bool, tmp_path: Path) -> None:
    before, steps = SCENARIOS[name]
    wrapped = _in_volume(before) if encrypted else before
    with (
        serving(wrapped, tmp_path / "socket") as server,
        NbdDisk(server.address, read_only=False) as disk,
    ):
        device = luks.open(disk, PASSPHRASE, read_only=False) if encrypted else disk
        store = open_store(device)
        states = [contents(store)]
        server.mark(0)
        for number, step in enumerate(steps, 1):
            step(store)
            if step is reopen:
                store = open_store(device)
            states.append(contents(store))
            server.mark(number)
    counts: Counter[str] = Counter()
    known: dict[bytes, Contents] = {}
    for crash in crash_states(server.before, server.log, exhaustive=8, samples=16):
        last = acknowledged(crash)
        if crash.content not in known:
            known[crash.content] = _contents_of(crash.content, encrypted=encrypted)
        found = known[crash.content]
        allowed = states[last : last + 2]
        assert found in allowed, f"{crash.point} {crash.landed}: {found} is none of {allowed}"
        counts["old" if found == allowed[0] else "new"] += 1
    assert counts["new"] >= len(steps)
    assert counts.total() > 30


def _in_volume(content: bytes) -> bytes:
    device = MemoryDevice(0)
    volume = luks.format(
        device, PASSPHRASE, key_size=32, size=len(content), kdf=PBKDF2, sector_size=512,
        keyslots_size=256 << 10, data_offset=288 << 10,
    )  # fmt: skip
    with volume:
        volume.write(0, content)
    return bytes(device.content)


def _contents_of(content: bytes, *, encrypted: bool) -> Contents:
    device = MemoryDevice(content)
    if not encrypted:
        return contents(open_store(device, read_only=True))
    with luks.open(device, PASSPHRASE) as volume:
        return contents(open_store(volume, read_only=True))


def test_n77_a_put_is_one_request(tmp_path: Path) -> None:
    before = image([spec("a", 70_000)], block_size=4096)
    with (
        serving(before, tmp_path / "socket") as server,
        NbdDisk(server.address, read_only=False) as disk,
    ):
        store = open_store(disk)
        for size in (1, 4000, 64 << 10):
            requests, events = server.count, len(server.log)
            store.put("a", bytes(size))
            assert server.commands[requests:] == [Command.WRITE]
            assert isinstance(server.log[events], ForcedWrite)


def test_n77_a_write_is_not_forced_while_others_are_not_durable(tmp_path: Path) -> None:
    with (
        serving(bytes(1 << 16), tmp_path / "socket") as server,
        NbdDisk(server.address, read_only=False) as disk,
    ):
        disk.write(0, b"1" * 512)
        disk.write_durably(512, b"2" * 512)
        assert server.commands[0] == Command.FLUSH, "of what the last writer left (P62)"
        assert server.commands[1:] == [Command.WRITE, Command.WRITE, Command.FLUSH]
        disk.write_durably(512, b"3" * 512)
        assert server.commands[4:] == [Command.WRITE]
        assert bytes(server.content[:1024]) == b"1" * 512 + b"3" * 512


def test_p4_a_new_store_is_whole_or_not_there(tmp_path: Path) -> None:
    size = container_size(SMALL, block_size=512, free=5000)
    with (
        serving(bytes(size), tmp_path / "socket") as server,
        NbdDisk(server.address, read_only=False) as disk,
    ):
        initialise(disk, SMALL, encrypted=False, block_size=512)
        server.mark("done")
    outcomes: Counter[str] = Counter()
    for crash in crash_states(server.before, server.log, samples=20):
        try:
            found = contents(open_store(crash.content))
        except FormatError:
            assert "done" not in crash.marks
            outcomes["nothing"] += 1
            continue
        assert found == {"a": "unwritten", "b": b"first"}
        outcomes["whole"] += 1
    assert outcomes["whole"] > 1
    assert outcomes["nothing"] > 10


EDITS: dict[str, Callable[[luks.HeaderEdit], object]] = {
    "add a key": lambda header: header.add_keyslot(OTHER, kdf=PBKDF2),
    "change a key": lambda header: header.change_keyslot(0, OTHER, kdf=PBKDF2),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", EDITS)
def test_p4_a_header_opens_with_the_old_key_or_the_new_one(
    name: str, version: int, tmp_path: Path
) -> None:
    device = MemoryDevice(0)
    more: dict[str, Any] = {}
    if version == 2:
        more = {"keyslots_size": 256 << 10, "data_offset": 288 << 10}
    luks.format(
        device, PASSPHRASE, version=version, key_size=32, size=4096, kdf=PBKDF2, **more
    ).close()
    with (
        serving(bytes(device.content), tmp_path / "socket") as server,
        NbdDisk(server.address, read_only=False) as disk,
    ):
        with luks.edit(disk) as header:
            header.unlock(PASSPHRASE)
            EDITS[name](header)
        server.mark("done")
    outcomes: Counter[frozenset[bytes]] = Counter()
    known: dict[bytes, frozenset[bytes]] = {}
    for crash in crash_states(server.before, server.log, exhaustive=3, samples=3):
        if crash.content not in known:
            known[crash.content] = frozenset(
                secret for secret in (PASSPHRASE, OTHER) if _opens(crash.content, secret)
            )
        found = known[crash.content]
        assert found, (crash.point, crash.landed)
        assert "done" not in crash.marks or OTHER in found
        outcomes[found] += 1
    assert frozenset((PASSPHRASE,)) in outcomes
    assert any(OTHER in found for found in outcomes)


def _opens(content: bytes, secret: bytes) -> bool:
    try:
        luks.open(MemoryDevice(content), secret).close()
    except luks.NoKeyslotMatchError:
        return False
    return True
