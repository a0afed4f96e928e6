"""The server with a client by hand: exports, limits, what is durable (N11 to N30)."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from blobstore.nbd.exports import NbdDevice, NbdSections
from blobstore.nbd.server import NbdServer
from blobstore.nbd.sockets import parse_nbd_address
from formats.devices.device import MemoryDevice
from formats.errors import ArgumentError, DeviceBusyError, DeviceError, DeviceFullError
from formats.nbd.numbers import Command, CommandFlag, Errno, OptionReply
from tests.nbd.support import Client, contexts, option, request, status
from tests.support.stores import image, open_store, spec
from tests.support.windows import manual_alarms, window_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.store.store import Store
    from formats.devices.device import ReadableBuffer

SIZE = 20_000
FUA = CommandFlag.FUA
ADDED = [
    window_spec("w", SIZE, b"window"),
    window_spec("w2", 512),
    spec("b", 100, b"blob"),
    spec("unwritten", 100),
]


@pytest.fixture(autouse=True)
def no_commits_in_idle_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    manual_alarms(monkeypatch)


@contextmanager
def serving(store: Store, path: Path, **options: float) -> Iterator[NbdServer]:
    with NbdServer(path / "s", NbdSections(store), **options) as server:  # type: ignore[arg-type]
        yield server


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(image(ADDED)) as opened:
        yield opened


@pytest.fixture
def server(store: Store, tmp_path: Path) -> Iterator[NbdServer]:
    with serving(store, tmp_path) as started:
        yield started


@contextmanager
def client(server: NbdServer, name: str, *, structured: bool = True) -> Iterator[Client]:
    with Client(server.address) as connected:
        connected.begin(name, structured=structured)
        yield connected


def names(server: NbdServer) -> list[str]:
    with Client(server.address) as connected:
        connected.greet()
        return [data[4:].decode() for _, data in connected.ask(option(3))[:-1]]


def until_is(expected: object, found: object) -> None:
    """Wait for what another thread does after the client has gone."""
    deadline = time.monotonic() + 20
    while callable(found) and found() != expected:
        assert time.monotonic() < deadline, found()
        time.sleep(0.005)


# ----------------------------------------------------------------- exports


def test_n23_windows_and_written_blobs_are_exported(store: Store, server: NbdServer) -> None:
    assert names(server) == ["w", "w2", "b"]
    store.put("unwritten", b"now it is")
    assert names(server) == ["w", "w2", "b", "unwritten"]
    with client(server, "b") as blob:
        assert blob.read(0, 4).data == b"blob"
        assert blob.write(0, b"x").error == Errno.EPERM
    with client(server, "w") as window:
        assert window.read(0, 8).data == b"window\0\0"
        assert window.read(SIZE - 1, 1).data == b"\0"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("absent", OptionReply.ERR_UNKNOWN),
        ("unwritten", OptionReply.ERR_UNKNOWN),
        ("", OptionReply.ERR_UNKNOWN),
    ],
)
def test_n8_n5_absent_export_is_unknown(server: NbdServer, name: str, kind: int) -> None:
    with Client(server.address) as connected, pytest.raises(LookupError) as caught:
        connected.begin(name, structured=False)
    assert caught.value.args[0][0] == kind


def test_n5_empty_name_means_the_only_export(store: Store, tmp_path: Path) -> None:
    with NbdServer(tmp_path / "s", NbdSections(store, ["w"])) as server:
        assert names(server) == ["w"]
        with client(server, "") as window:
            assert window.write(0, b"W").error == 0
            assert status(window.do(Command.BLOCK_STATUS, 0, 100))  # selected for "" (N10)
        with Client(server.address) as other, pytest.raises(LookupError):
            other.begin("b", structured=False)


def test_n8_damage_is_not_called_absence(tmp_path: Path) -> None:
    content = bytearray(image(ADDED))
    at = content.rindex(b"blob")
    content[at] ^= 1
    with open_store(bytes(content)) as store, serving(store, tmp_path) as server:
        with Client(server.address) as connected, pytest.raises(LookupError) as caught:
            connected.begin("b", structured=False)
        assert caught.value.args[0][0] == OptionReply.ERR_PLATFORM


def test_n8_window_of_the_owner_is_busy_until_it_is_closed(store: Store, server: NbdServer) -> None:
    with store.window("w"), Client(server.address) as connected:
        with pytest.raises(LookupError) as caught:
            connected.begin("w", structured=False)
        assert caught.value.args[0][0] == OptionReply.ERR_PLATFORM
        assert b"open window" in caught.value.args[0][1]
    with client(server, "w"):
        pass


def test_n23_store_open_for_reading_exports_for_reading(tmp_path: Path) -> None:
    with (
        open_store(image(ADDED), read_only=True) as store,
        serving(store, tmp_path) as server,
        client(server, "w") as window,
    ):
        assert window.read(0, 6).data == b"window"
        assert window.write(0, b"x").error == Errno.EPERM
        assert window.flush().error == 0


def test_n24_connections_share_a_window_and_the_last_one_commits(
    store: Store, server: NbdServer
) -> None:
    with client(server, "w") as one:
        with client(server, "w") as other:
            assert one.write(0, b"ONE").error == 0
            assert other.read(0, 6).data == b"ONEdow"
            assert other.write(10, b"OTHER").error == 0
            assert store.get("w") == b"window"
        assert one.read(0, 1).data == b"O"
        assert one.write(20, b"MORE").error == 0
    until_is(b"ONEdow\0\0\0\0OTHER\0\0\0\0\0MORE", lambda: store.get("w").rstrip(b"\0"))
    with store.window("w"):  # it was let go of
        pass


def test_n24_n27_flush_on_one_connection_is_for_all(store: Store, server: NbdServer) -> None:
    with client(server, "w") as one, client(server, "w") as other:
        assert one.write(0, b"ONE").error == 0
        assert other.flush().error == 0
        assert store.get("w")[:6] == b"ONEdow"


@pytest.mark.parametrize("command", [Command.WRITE, Command.WRITE_ZEROES, Command.TRIM])
def test_n27_fua_is_durable_when_it_is_answered(
    store: Store, server: NbdServer, command: Command
) -> None:
    with client(server, "w") as window:
        window.write(100, b"before")
        before = store.section("w").generation
        if command is Command.WRITE:
            assert window.write(0, b"\0" * 3, flags=FUA).error == 0
        else:
            assert window.do(command, 0, 3, flags=FUA).error == 0
        assert store.get("w")[:6] == b"\0\0\0dow"
        assert store.get("w")[100:106] == b"before"
        assert store.section("w").generation == before + 1
        window.flush()
        assert store.section("w").generation == before + 1  # nothing was left to commit


def test_n25_blob_is_what_it_was_when_the_connection_began(store: Store, server: NbdServer) -> None:
    with client(server, "b") as older:
        store.put("b", b"a newer one")
        with client(server, "b") as newer:
            assert newer.read(0, 11).data == b"a newer one"
            assert older.read(0, 4).data == b"blob"
            assert older.read(0, 5).error == Errno.EINVAL


def test_n24_flush_of_the_server_commits_all_windows(store: Store, server: NbdServer) -> None:
    with client(server, "w") as one, client(server, "w2") as two:
        one.write(0, b"1")
        two.write(0, b"2")
        server.flush()
        assert (store.get("w")[:1], store.get("w2")[:1]) == (b"1", b"2")


# ---------------------------------------------------------------- requests


@pytest.mark.parametrize("structured", [True, False])
def test_n17_n18_everything_is_answered_either_way(server: NbdServer, structured: bool) -> None:
    with client(server, "w", structured=structured) as window:
        assert window.write(3, b"data").error == 0
        assert window.read(2, 6).data == b"ndata\0"
        assert window.do(Command.WRITE_ZEROES, 4, 2, flags=CommandFlag.FAST_ZERO).error == 0
        assert window.do(Command.TRIM, 0, 2).error == 0
        assert window.do(Command.CACHE, 0, 100).error == 0
        assert window.read(0, 8).data == b"\0\0nd\0\0a\0"
        assert window.read(SIZE, 1).error == Errno.EINVAL
        assert window.write(SIZE, b"x").error == Errno.ENOSPC
        assert window.do(99).error == Errno.EINVAL
        for command in (Command.READ, Command.WRITE, Command.TRIM, Command.CACHE):
            assert window.do(command, SIZE, 0).error == 0
        assert window.flush().error == 0


def test_n14_requests_that_come_at_once_are_answered_in_order(server: NbdServer) -> None:
    with client(server, "w") as window:
        sent = [request(Command.WRITE, n, data=bytes([n])) for n in range(200)]
        sent += [request(Command.READ, n, 1) for n in range(200)]
        window.send(b"".join(sent))
        assert all(window.reply().error == 0 for _ in range(200))
        assert [window.reply(1).data for _ in range(200)] == [bytes([n]) for n in range(200)]


def test_n20_block_status_tells_zeros() -> None:
    content = b"x" * 100 + bytes(3 * 4096) + b"y"
    device = MemoryDevice(content + bytes(5 << 20))
    size = device.size
    with _device_client(device) as connected:
        found = status(connected.do(Command.BLOCK_STATUS, 0, size))
        assert found == [(4096, 0), (8192, 2), (4096, 0), ((4 << 20) - 16384, 2)]
        assert status(connected.do(Command.BLOCK_STATUS, 100, 5000)) == [(5000, 2)]
        one = connected.do(Command.BLOCK_STATUS, 0, size, flags=CommandFlag.REQ_ONE)
        assert status(one) == [(4096, 0)]
        assert status(connected.do(Command.BLOCK_STATUS, size - 1, 1)) == [(1, 2)]


class FailingDevice(MemoryDevice):
    """Fails as it is told."""

    error: Exception

    def write(self, _offset: int, _data: ReadableBuffer, /) -> None:
        raise self.error

    def read_into(self, _offset: int, _buffer: bytearray | memoryview, /) -> None:
        if hasattr(self, "error"):
            raise self.error


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize(
    ("error", "number"),
    [
        (DeviceError("gone"), Errno.EIO),
        (DeviceFullError("full"), Errno.ENOSPC),
        (blobstore.NoSpaceError("full"), Errno.ENOSPC),
        (blobstore.PoisonedStoreError("poisoned"), Errno.EIO),
        (MemoryError(), Errno.ENOMEM),
        (ValueError("this window was closed"), Errno.ESHUTDOWN),
    ],
)
def test_n19_errors_have_their_numbers_and_the_connection_goes_on(
    error: Exception, number: int, structured: bool
) -> None:
    device = FailingDevice(1000)
    with _device_client(device, structured=structured) as connected:
        device.error = error
        for reply in (connected.write(0, b"data"), connected.read(0, 4)):
            assert reply.error == number
            assert reply.data == (str(error).encode() * structured or reply.data)
        assert connected.flush().error == 0


@contextmanager
def _device_client(device: MemoryDevice, *, structured: bool = True) -> Iterator[Client]:
    source = NbdDevice("d", device, writable=True)
    with (
        NbdServer(("127.0.0.1", 0), source) as server,
        client(server, "d", structured=structured) as connected,
    ):
        yield connected


def test_n19_closed_store_is_a_shutdown(store: Store, server: NbdServer) -> None:
    with client(server, "w") as window:
        store.close()
        assert window.read(0, 1).error == Errno.ESHUTDOWN
        with Client(server.address) as other, pytest.raises(LookupError):
            other.begin("w", structured=False)


# ----------------------------------------------------------------- devices


def test_n26_payload_of_a_volume_is_exported(tmp_path: Path) -> None:
    path = tmp_path / "luks"
    kdf = luks.Pbkdf2("sha256", 1000)
    luks.format(path, b"pw", size=4 << 20, kdf=kdf).close()
    with (
        luks.open(path, b"pw", read_only=False) as volume,
        NbdServer(tmp_path / "s", NbdDevice("payload", volume, writable=True)) as server,
        client(server, "") as payload,
    ):
        assert payload.write(1000, b"data", flags=FUA).error == 0
        assert payload.do(Command.WRITE_ZEROES, 1001, 2).error == 0
        fast = payload.do(Command.WRITE_ZEROES, 0, 2, flags=CommandFlag.FAST_ZERO)
        assert fast.error == Errno.ENOTSUP
    with luks.open(path, b"pw") as volume:
        assert volume.read(1000, 4) == b"d\0\0a"


def test_n26_payload_of_a_store_is_only_read(tmp_path: Path) -> None:
    content = image(ADDED)
    with pytest.raises(ArgumentError, match="N26"):
        NbdDevice("payload", MemoryDevice(content), writable=True)
    first_copy_lost = bytes(512) + content[512:]
    with pytest.raises(ArgumentError, match="N26"):
        NbdDevice("payload", MemoryDevice(first_copy_lost), writable=True)
    source = NbdDevice("payload", MemoryDevice(content))
    with NbdServer(tmp_path / "s", source) as server, client(server, "payload") as payload:
        assert payload.read(0, len(content)).data == content
        assert payload.write(0, b"x").error == Errno.EPERM


def test_first_source_of_a_name_counts(store: Store, tmp_path: Path) -> None:
    device = NbdDevice("b", MemoryDevice(b"device"))
    other = NbdDevice("d", MemoryDevice(b"other"))
    with NbdServer(tmp_path / "s", device, NbdSections(store), other) as server:
        assert names(server) == ["b", "w", "w2", "d"]
        with client(server, "b") as connected:
            assert connected.read(0, 6).data == b"device"


# ------------------------------------------------------- sockets and limits


def test_n11_handshake_has_a_limit_of_time(store: Store, tmp_path: Path) -> None:
    with serving(store, tmp_path, handshake_time=0.3) as server, Client(server.address) as slow:
        slow.greet()
        began = time.monotonic()
        with pytest.raises(EOFError):
            while True:  # silence is not what counts
                slow.ask(option(99))
                time.sleep(0.05)
        assert time.monotonic() - began < 10


def test_n22_half_a_request_has_a_limit_of_time_and_silence_has_none(
    store: Store, tmp_path: Path
) -> None:
    with (
        serving(store, tmp_path, stall_time=0.2) as server,
        client(server, "w") as silent,
        client(server, "w") as stalled,
    ):
        stalled.send(request(Command.WRITE, 0, data=b"data")[:-1])
        with pytest.raises(EOFError):
            stalled.receive(1)
        time.sleep(0.3)
        assert silent.read(0, 6).data == b"window"


def test_n22_client_that_takes_no_answer_is_left(tmp_path: Path) -> None:
    device = NbdDevice("d", MemoryDevice(8 << 20))
    with (
        NbdServer(tmp_path / "s", device, stall_time=0.2) as server,
        client(server, "d") as deaf,
    ):
        deaf.send(request(Command.READ, 0, 8 << 20) * 2)
        time.sleep(1)
        with pytest.raises(EOFError):
            deaf.receive(16 << 20)


def test_n22_stop_finishes_requests_and_commits(tmp_path: Path) -> None:
    with open_store(image(ADDED)) as store:
        server = NbdServer(tmp_path / "s", NbdSections(store))
        server.start()
        with client(server, "w") as window, Client(server.address):
            window.write(0, b"W")
            server.stop()
            with pytest.raises(EOFError):
                window.read(0, 1)
        assert store.get("w")[:6] == b"Window"
        assert not (tmp_path / "s").exists()
        assert not [t for t in threading.enumerate() if t.name.startswith("blobstore nbd")]
        server.stop()
        with pytest.raises(ValueError, match="once"):
            server.start()


def test_n28_socket_is_for_its_owner_only(server: NbdServer) -> None:
    assert isinstance(server.address, Path)
    assert stat.S_IMODE(server.address.stat().st_mode) == 0o600


def test_n28_left_over_socket_is_replaced(store: Store, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(tmp_path / "s"))
    with serving(store, tmp_path) as server:
        assert "w" in names(server)
        second = NbdServer(tmp_path / "s", NbdSections(store))
        with pytest.raises(DeviceBusyError, match="cannot listen"):
            second.start()
        second.stop()
        assert "w" in names(server)


def test_n28_file_in_the_way_is_not_touched(store: Store, tmp_path: Path) -> None:
    tmp_path.joinpath("s").write_bytes(b"mine")
    server = NbdServer(tmp_path / "s", NbdSections(store))
    with pytest.raises(DeviceBusyError):
        server.start()
    server.stop()
    assert tmp_path.joinpath("s").read_bytes() == b"mine"
    with pytest.raises(DeviceError, match="too long"):
        NbdServer(tmp_path / ("n" * 200), NbdSections(store)).start()


@pytest.mark.parametrize(
    "text", ["0.0.0.0:10809", "[::]:1", "example.org:1", "127.0.0.1:65536", ""]
)
def test_n28_other_addresses_are_refused(store: Store, text: str) -> None:
    with pytest.raises(ArgumentError):
        parse_nbd_address(text)
    if ":" in text:
        host, port = text.rsplit(":", 1)
        with pytest.raises(ArgumentError):
            NbdServer((host.strip("[]"), int(port)), NbdSections(store))


def test_n28_addresses_are_written_as_usual() -> None:
    assert parse_nbd_address("127.0.0.1:10809") == ("127.0.0.1", 10809)
    assert parse_nbd_address("[::1]:0") == ("::1", 0)
    assert parse_nbd_address(":1") == ("localhost", 1)
    assert parse_nbd_address("localhost:1") == ("localhost", 1)
    assert parse_nbd_address("/run/a:1") == Path("/run/a:1")
    assert parse_nbd_address("nbd.sock") == Path("nbd.sock")


def test_n29_connections_are_bounded_and_places_become_free(store: Store, tmp_path: Path) -> None:
    with serving(store, tmp_path, most_connections=20) as server, ExitStack() as stack:
        held = [stack.enter_context(client(server, "w")) for _ in range(20)]
        for _ in range(300):
            with Client(server.address) as turned_away, pytest.raises(EOFError):
                turned_away.greet()
        assert all(one.read(0, 6).data == b"window" for one in held)
        held[0].close()
        until_is(19, lambda: len(server._clients))
        with client(server, "w") as next_one:
            assert next_one.read(0, 6).data == b"window"


def test_n70_clients_that_do_not_begin_give_way(store: Store, tmp_path: Path) -> None:
    with serving(store, tmp_path, most_connections=8) as server, ExitStack() as stack:
        held = [stack.enter_context(client(server, "w")) for _ in range(3)]
        silent = [stack.enter_context(Client(server.address)) for _ in range(5)]
        for one in silent:
            one.greet()
        time.sleep(0.3)
        held += [stack.enter_context(client(server, "w")) for _ in range(5)]
        for one in silent:
            with pytest.raises((EOFError, ConnectionError)):
                one.greet()
        assert all(one.read(0, 6).data == b"window" for one in held)
        with Client(server.address) as turned_away, pytest.raises((EOFError, ConnectionError)):
            turned_away.greet()  # those that have begun keep their places


def test_many_connections_write_at_once(store: Store, server: NbdServer) -> None:
    failures = []

    def work(number: int) -> None:
        with client(server, "w") as window:
            for turn in range(30):
                reply = window.write(number * 100 + turn, bytes([number + 1]), flags=turn % 7 == 0)
                if reply.error or window.read(number * 100, 1).data != bytes([number + 1]):
                    failures.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    server.flush()
    until_is(0, lambda: len(server._clients))
    found = store.get("w")
    for number in range(16):
        assert found[number * 100 : number * 100 + 30] == bytes([number + 1]) * 30


def test_twenty_devices_write_and_flush_at_once(tmp_path: Path) -> None:
    names = [f"device {number}" for number in range(20)]
    done = threading.Barrier(len(names))
    failures: list[BaseException] = []

    def work(server: NbdServer, name: str) -> None:
        try:
            with client(server, name) as window:
                for turn in range(10):
                    assert window.write(turn * 512, name.encode()).error == 0
                    assert window.flush().error == 0
                done.wait(60)
        except BaseException as error:
            failures.append(error)
            raise

    with open_store(image([window_spec(name, 8192) for name in names])) as store:
        before = store.digest().generation
        with serving(store, tmp_path) as server:
            threads = [threading.Thread(target=work, args=(server, name)) for name in names]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not failures
        for name in names:
            blob = store.get(name)
            assert all(blob[turn * 512 :].startswith(name.encode()) for turn in range(10))
        assert store.digest().generation == before + 200  # each flush was a commit, and no more
        assert store.verify().ok


def test_n10_contexts_of_an_absent_export_are_unknown(server: NbdServer) -> None:
    with Client(server.address) as connected:
        connected.greet()
        connected.ask(option(8))
        assert connected.ask(contexts("absent"))[-1][0] == OptionReply.ERR_UNKNOWN
