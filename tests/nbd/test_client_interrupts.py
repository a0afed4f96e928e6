"""Interrupts of a client at every bytecode: no connection is lost, and nothing acknowledged (N80).

What an interrupt cuts off may have happened or not. Afterwards the device must work as before:
with all of its connections, and with everything that was answered before, also if the server
dies at that moment and loses what was not flushed.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from blobstore.image.remote.nbd_disk import NbdDisk
from formats.errors import DeviceError
from tests.nbd.recording import serving
from tests.support.interrupts import InterruptPoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from blobstore.image.remote.nbd_connection import NbdConnection
    from tests.nbd.recording import Fault, RecordingServer

pytestmark = [
    pytest.mark.slow,
    # A socket that no variable has yet when the interrupt comes is closed by Python, which says so.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SIZE = 1 << 16
OLD, NEW, FIRST, LAST = (bytes([number]) * 1024 for number in (0, 1, 2, 3))
#: Where the call that is interrupted writes, and where the write before it did.
AT, BEFORE = 4096, 0
CALLS: dict[str, Callable[[NbdDisk], object]] = {
    "read": lambda disk: disk.read(AT, 1024),
    "write": lambda disk: disk.write(AT, NEW),
    "flush": lambda disk: disk.flush(),
    "write durably": lambda disk: disk.write_durably(AT, NEW),
    "discard": lambda disk: disk.discard(AT, 1024),
}
#: Points of each call that CI tries.
SAMPLE = 40
CONNECTIONS = 4


@contextmanager
def opened(server: RecordingServer) -> Iterator[NbdDisk]:
    server.content[:] = bytes(SIZE)
    with NbdDisk(server.address, read_only=False, reconnecting=20) as disk:
        yield disk


def all_at_once(disk: NbdDisk) -> None:
    """Use as many connections as there may be at the same time."""
    meeting = threading.Barrier(CONNECTIONS, timeout=30)
    failed: list[BaseException] = []

    def use(_: NbdConnection) -> None:
        meeting.wait()

    def call() -> None:
        try:
            disk._connections.use(use)
        except threading.BrokenBarrierError as error:
            failed.append(error)

    threads = [threading.Thread(target=call) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, "a connection is lost"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RecordingServer]:
    with serving(bytes(SIZE), tmp_path / "socket") as running:
        yield running


@pytest.mark.parametrize("fault", [None, "cut after", "died"])
@pytest.mark.parametrize("is_flushed", [True, False], ids=["durable", "not durable"])
@pytest.mark.parametrize("name", CALLS)
def test_n80_an_interrupt_anywhere(
    name: str, is_flushed: bool, fault: Fault | None, server: RecordingServer
) -> None:
    """With a fault, the call connects again, and is interrupted in that as well."""

    def begin(disk: NbdDisk) -> None:
        disk.write(BEFORE, FIRST)
        if is_flushed:
            disk.flush()
        if fault is not None:
            server.faults[server.count + 1] = fault

    with opened(server) as disk:
        begin(disk)
        points = InterruptPoints(lambda: CALLS[name](disk))
    chosen = points.chosen(SAMPLE)
    interrupted = 0
    for point in chosen:
        with opened(server) as disk:
            begin(disk)
            with points.interrupted_at(point):
                # When it is noticed that a server died differs, and then there may be fewer points.
                try:
                    CALLS[name](disk)
                except KeyboardInterrupt:
                    interrupted += 1
            assert disk.read(BEFORE, 1024) == FIRST, point
            for at in (AT, AT + 512):  # the server may have died within it
                assert disk.read(at, 512) in (OLD[:512], NEW[:512]), point
            disk.write(AT, LAST)
            disk.flush()
            assert disk.read(BEFORE, 1024) + disk.read(AT, 1024) == FIRST + LAST, point
            all_at_once(disk)
        assert bytes(server.content[AT : AT + 1024]) == LAST
    assert interrupted > len(chosen) * (0.9 if fault is None else 0.5)


@contextmanager
def used_by_another(disk: NbdDisk) -> Iterator[None]:
    """Have a thread use the first connection in the block."""
    began, end = threading.Event(), threading.Event()

    def hold(_: NbdConnection) -> None:
        began.set()
        assert end.wait(30)

    thread = threading.Thread(target=lambda: disk._connections.use(hold))
    thread.start()
    assert began.wait(30)
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_n80_an_interrupt_while_a_connection_is_added(server: RecordingServer) -> None:
    with opened(server) as disk, used_by_another(disk):
        points = InterruptPoints(lambda: disk.read(AT, 1024))
    assert points.total > 300, "it makes a connection"
    for point in points.chosen(SAMPLE * 2):
        with opened(server) as disk:
            with (
                used_by_another(disk),
                points.interrupted_at(point),
                pytest.raises(KeyboardInterrupt),
            ):
                disk.read(AT, 1024)
            all_at_once(disk)
            disk.write(AT, LAST)
            disk.flush()


def test_n80_an_interrupt_while_it_is_closed(server: RecordingServer) -> None:
    """What was left open is closed by the next call, or with the device."""
    with opened(server) as disk:
        all_at_once(disk)
        points = InterruptPoints(disk.close)
    for point in points.chosen(SAMPLE):
        with opened(server) as disk:
            all_at_once(disk)
            with points.interrupted_at(point), pytest.raises(KeyboardInterrupt):
                disk.close()
            disk.close()
            with pytest.raises(ValueError, match="closed"):
                disk.read(0, 1)
            assert all(place.is_empty for place in disk._connections._places), point


@pytest.mark.parametrize("is_durable", [True, False])
def test_n80_a_handler_of_a_signal_may_use_it_in_the_middle_of_a_request(
    is_durable: bool, server: RecordingServer
) -> None:
    """The request that it cuts in two is made again, by the call that was interrupted."""
    with opened(server) as disk:
        disk.write(BEFORE, FIRST)
        if is_durable:
            disk.flush()
        seen: list[bytes] = []

        def nested(connection: NbdConnection) -> None:
            connection.is_at_rest = False  # as while a reply is waited for
            if not seen:
                seen.append(b"")
                disk.write(AT, NEW)
                seen.append(disk.read(BEFORE, 1024))
                raise ConnectionAbortedError("its socket is closed")

        disk._attempt(nested)
        assert seen[1] == FIRST
        disk.flush()
        assert disk.read(BEFORE, 1024) + disk.read(AT, 1024) == FIRST + NEW


def test_n81_a_server_that_takes_no_further_connection_is_used_with_those_there_are(
    server: RecordingServer,
) -> None:
    with opened(server) as disk:
        with used_by_another(disk):
            socket = server.path.rename(server.path.with_name("away"))
            reading = threading.Thread(target=lambda: disk.read(0, 512))
            reading.start()
            reading.join(0.2)
            assert reading.is_alive(), "it waits for the connection that there is"
            socket.rename(server.path)
        reading.join(30)
        assert not reading.is_alive()


def test_n64_what_is_refused_leaves_the_connection(server: RecordingServer) -> None:
    with opened(server) as disk:
        server.faults[server.count + 1] = "refused"
        with pytest.raises(DeviceError, match="as the test wants it"):
            disk.write(AT, NEW)
        before = disk._connections
        disk.write(AT, LAST)
        disk.flush()
        assert disk._connections is before


def test_n82_connections_from_before_are_not_used_again(server: RecordingServer) -> None:
    with opened(server) as disk:
        all_at_once(disk)
        before = disk._connections
        with used_by_another(disk):
            server.faults[server.count + 1] = "cut after"
            disk.write(AT, NEW)
            assert disk._connections is not before
            assert [place.is_empty for place in before._places] == [False, True, True, True]
        assert all(place.is_empty for place in before._places)
        with pytest.raises(ConnectionAbortedError):
            before.use(lambda _: None)
        disk.flush()
        all_at_once(disk)
