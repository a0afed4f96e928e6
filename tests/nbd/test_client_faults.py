"""Whatever goes wrong with any request of a store over NBD, nothing is lost (N66, N78, C51).

Each fault happens to each request in turn, also to those that a new connection repeats. A server
that refuses is a clean error. A connection that ends, or a server that dies with what was not
flushed, is not noticed at all if the server is there again.
"""

from __future__ import annotations

import socket
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import pytest

import blobstore
import luks
from blobstore.errors import DamagedHeadError, PoisonedStoreError
from blobstore.image.remote.nbd_connection import NbdAddress
from blobstore.image.remote.nbd_disk import NbdDisk
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError, FormatError
from formats.nbd.numbers import Command
from tests.luks.support import OTHER, PASSPHRASE, PBKDF2
from tests.nbd.recording import FAULTS, greet, serving
from tests.nbd.servers import nbdkit
from tests.nbd.test_client_crash import commit_window
from tests.store.test_faults import everything
from tests.support.devices import crash_states
from tests.support.effort import cases
from tests.support.stores import contents, image, open_store, spec
from tests.support.windows import window_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from blobstore.store.store import Store
    from tests.nbd.recording import Fault, RecordingServer
    from tests.support.stores import Contents

pytestmark = pytest.mark.slow

SMALL = image([spec("a", 700, b"old a"), spec("b", 100, b"old b")], free=20_000)
WINDOW = window_image(2700, b"\x55" * 2700)


def puts(store: Store) -> None:
    for number in range(3):
        store.put("a", b"new %d" % number * 50)


def together(store: Store) -> None:
    with store.transaction() as changes:
        changes.put("a", b"new a" * 100)
        changes.put("b", b"new b")


def put_and_close(store: Store) -> None:
    store.put("b", b"new b")
    store.close()


OPERATIONS: dict[str, tuple[bytes, Callable[[Store], object]]] = {
    "puts": (SMALL, puts),
    "several at once": (SMALL, together),
    "create": (SMALL, lambda store: store.register("c", 300)),
    "delete": (SMALL, lambda store: store.delete("a")),
    "transaction": (SMALL, everything),
    "window": (WINDOW, commit_window),
    "close": (SMALL, put_and_close),
}
ERRORS = (DeviceError, PoisonedStoreError, DamagedHeadError, FormatError)


class Outcome(NamedTuple):
    """How a run ended."""

    acknowledged: bool
    requests: int
    server: RecordingServer


def run(
    name: str,
    directory: Path,
    faults: dict[int, Fault],
    *,
    reconnecting: float = 20,
    dying_at: int = 0,
) -> Outcome:
    """Open the store over NBD and do one operation."""
    before, operate = OPERATIONS[name]
    place = directory / "socket"
    with serving(before, place) as server:
        server.faults, server.last = faults, dying_at
        acknowledged = True
        try:
            with NbdDisk(server.address, read_only=False, reconnecting=reconnecting) as disk:
                operate(open_store(disk))
        except ERRORS:
            acknowledged = False
        server.mark(1 if acknowledged else 0)
    place.unlink()
    return Outcome(acknowledged, server.count, server)


def expected(name: str) -> list[Contents]:
    """Return what each durable step of an operation leaves."""
    before, operate = OPERATIONS[name]
    memory = MemoryDevice(before)
    states = [contents(open_store(memory))]
    if name == "puts":
        states += [{**states[0], "a": b"new %d" % number * 50} for number in range(3)]
    else:
        operate(open_store(memory))
        states.append(contents(open_store(memory)))
    return states


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_n66_every_fault_of_every_request(name: str, fault: Fault, tmp_path: Path) -> None:
    states = expected(name)
    clean = run(name, tmp_path, {})
    assert clean.acknowledged
    for number in range(1, clean.requests + 1):
        outcome = run(name, tmp_path, {number: fault})
        if fault != "refused":
            assert outcome.acknowledged, number
        check(outcome, states)


@pytest.mark.parametrize("second", FAULTS)
@pytest.mark.parametrize("first", ["cut after", "died"])
def test_n66_faults_while_what_was_not_flushed_is_sent_again(
    first: Fault, second: Fault, tmp_path: Path
) -> None:
    states = expected("transaction")
    requests = run("transaction", tmp_path, {}).requests
    for number in range(1, requests + 1, cases(3, 1)):
        for after in (1, 2, 3):
            outcome = run("transaction", tmp_path, {number: first, number + after: second})
            if second != "refused":
                assert outcome.acknowledged, (number, after)
            check(outcome, states)


@pytest.mark.parametrize("name", OPERATIONS)
def test_n66_a_server_that_goes_for_good(name: str, tmp_path: Path) -> None:
    """It may have carried out its last request, which is not known to the client."""
    states = expected(name)
    requests = run(name, tmp_path, {}).requests
    for last in range(1, requests + 1):
        outcome = run(name, tmp_path, {}, reconnecting=0.01, dying_at=last)
        assert not outcome.acknowledged
        check(outcome, states)


@lru_cache(maxsize=5000)  # most states are those of a run before
def contents_of(content: bytes) -> Contents:
    return contents(open_store(content, read_only=True))


def check(outcome: Outcome, states: list[Contents]) -> None:
    """Check the disk as it is, and as it is after a power cut of the server."""
    found = contents_of(bytes(outcome.server.content))
    assert found in (states[-1:] if outcome.acknowledged else states)
    for crash in crash_states(outcome.server.before, outcome.server.log, exhaustive=2, samples=2):
        found = contents_of(crash.content)
        assert found in (states[-1:] if 1 in crash.marks else states)


def test_n78_what_was_refused_is_not_sent_again(tmp_path: Path) -> None:
    with (
        serving(bytes(4096), tmp_path / "socket") as server,
        NbdDisk(server.address, read_only=False) as disk,
    ):
        server.faults = {3: "refused", 5: "cut before"}
        disk.write(0, b"1" * 512)
        with pytest.raises(DeviceError, match="EIO"):
            disk.write(512, b"2" * 512)
        disk.write(1024, b"3" * 512)
        disk.flush()
        assert server.commands == [
            *(Command.FLUSH, Command.WRITE, Command.WRITE, Command.WRITE, Command.FLUSH),
            *(Command.WRITE, Command.WRITE, Command.FLUSH),
        ]
        assert bytes(server.content) == b"1" * 512 + bytes(512) + b"3" * 512 + bytes(2560)


def test_n66_a_header_edit_survives_every_cut(tmp_path: Path) -> None:
    device = MemoryDevice(0)
    luks.format(
        device, PASSPHRASE, key_size=32, size=4096, kdf=PBKDF2,
        keyslots_size=256 << 10, data_offset=288 << 10,
    ).close()  # fmt: skip
    before = bytes(device.content)
    number, requests = 0, 1
    faults: tuple[Fault, ...] = ("cut before", "cut within", "died")
    while number < requests:
        number += 1
        with serving(before, tmp_path / f"socket{number}") as server:
            server.faults = {number: faults[number % len(faults)]}
            with NbdDisk(server.address, read_only=False) as disk, luks.edit(disk) as header:
                header.unlock(PASSPHRASE)
                header.change_keyslot(0, OTHER, kdf=PBKDF2)
        requests = server.count
        luks.open(MemoryDevice(bytes(server.content)), OTHER).close()
        with pytest.raises(luks.NoKeyslotMatchError):
            luks.open(MemoryDevice(bytes(server.content)), PASSPHRASE)
    assert number > 10


FILTERS = {
    "errors": ("--filter=error", "error-pwrite-rate=10%", "error-pread-rate=2%"),
    "errors, tried again by the server": (
        *("--filter=retry", "--filter=error", "retry-delay=1", "retry-exponential=no"),
        "error-rate=1%",
    ),
    "slow": ("--filter=delay", "wdelay=2ms", "rdelay=1ms"),
    "slow, with errors": ("--filter=delay", "--filter=error", "wdelay=2ms", "error-rate=5%"),
}


@pytest.mark.interop
@pytest.mark.parametrize("name", FILTERS)
def test_nothing_acknowledged_is_lost_at_nbdkit_s_filters(name: str, tmp_path: Path) -> None:
    """A store that an error poisoned is opened again, and goes on."""
    file = tmp_path / "image"
    file.write_bytes(image([spec("a", 5000, b"0")], free=20_000))
    filters = [one for one in FILTERS[name] if one.startswith("--")]
    options = [one for one in FILTERS[name] if not one.startswith("--")]
    acknowledged = attempted = errors = 0
    with (
        nbdkit(tmp_path / "socket", *filters, "file", str(file), *options) as server,
        NbdDisk(server.address, read_only=False) as disk,
    ):
        store: Store | None = None
        while attempted < 200:
            try:
                store = store or open_store(disk)
                assert acknowledged <= int(store.get("a").strip()) <= attempted
                attempted += 1
                store.put("a", b"%d" % attempted + b" " * (attempted * 20))
                acknowledged = attempted
            except blobstore.StorageError:
                errors += 1
                store = None
    assert (errors > 0) == ("error" in name and "again" not in name)
    assert acknowledged > 100
    assert acknowledged <= int(open_store(file.read_bytes()).get("a").strip()) <= attempted


def test_n79_nothing_arrives_from_a_connection_that_was_given_up() -> None:
    """What is on its way when the client turns to another connection is dropped, not sent on."""
    arrived: list[bytes] = []
    ended: list[str] = []
    given_up = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            client, _ = listening.accept()
            with client:
                greet(client, 4 << 20)
                given_up.wait(20)  # the network is cut: nothing is taken
                client.settimeout(20)
                try:
                    while data := client.recv(1 << 20):
                        arrived.append(data)
                    ended.append("as if all of it had been sent")
                except ConnectionResetError:
                    ended.append("cut off")

        serving_ = threading.Thread(target=serve)
        serving_.start()
        address = NbdAddress(socket=listening.getsockname(), timeout=0.5)
        with NbdDisk(address, read_only=False, lock=False, reconnecting=0) as disk:
            with pytest.raises(DeviceError, match="broke"):
                disk.write(0, bytes(4 << 20))
            given_up.set()
            serving_.join()
    assert ended == ["cut off"]
