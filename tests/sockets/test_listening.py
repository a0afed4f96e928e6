"""Sockets that listen (O120 to O122): their modes, what is in the way, what is removed."""

from __future__ import annotations

import os
import socket
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from blobstore.sockets import listening
from blobstore.sockets.addresses import (
    InheritedAddress,
    TcpAddress,
    UnixAddress,
    parse_address,
)
from blobstore.sockets.listening import alone_in, is_stale, listen
from blobstore.sockets.peers import describe_peer, peer_credentials
from formats.errors import ArgumentError, DeviceBusyError, DeviceError

if TYPE_CHECKING:
    from pathlib import Path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def leave(path: Path) -> None:
    """Leave a socket where no process listens."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(path))


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o770])
def test_modes_are_exact_and_never_wider_o120(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int, mode: int
) -> None:
    path = tmp_path / "s"
    seen: list[int] = []

    class Watching(listening.MadeFile):
        def __init__(self, path: Path) -> None:
            seen.append(mode_of(path))
            super().__init__(path)

    monkeypatch.setattr(listening, "MadeFile", Watching)
    before = os.umask(mask)
    try:
        with listen(UnixAddress(path, mode)):
            assert mode_of(path) == mode
    finally:
        os.umask(before)
    assert not any(found & ~0o600 for found in seen)
    assert len(seen) == 1


def test_where_sockets_have_no_mode_the_mask_does_it_o120(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fchmod", refuse)
    before = os.umask(0)
    try:
        with listen(UnixAddress(tmp_path / "s")):
            assert mode_of(tmp_path / "s") == 0o600
            assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_users_and_groups_are_set_o120(tmp_path: Path) -> None:
    # Only root gives files away.
    user, group = (12, 34) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    with listen(UnixAddress(tmp_path / "s", 0o660, user, group)):
        found = tmp_path.joinpath("s").stat()
        assert (found.st_uid, found.st_gid, mode_of(tmp_path / "s")) == (user, group, 0o660)


def test_one_looks_after_the_other_o120(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_PATIENCE", 0.05)
    with alone_in(tmp_path), pytest.raises(DeviceBusyError, match=r"locked \[O120\]"):
        listen(UnixAddress(tmp_path / "s"))
    monkeypatch.undo()
    leave(tmp_path / "s")
    results: list[object] = []

    def start() -> None:
        try:
            results.append(listen(UnixAddress(tmp_path / "s")))
        except DeviceBusyError as error:
            results.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, DeviceBusyError) for one in results) == 7
    for one in results:
        if isinstance(one, listening.Listener):
            one.close()


def test_what_is_stale_is_replaced_o121(tmp_path: Path) -> None:
    path, link = tmp_path / "s", tmp_path / "link"
    leave(path)
    link.symlink_to(path)
    assert is_stale(path)
    assert is_stale(link)
    listen(UnixAddress(link)).close()
    assert not link.is_symlink()
    assert path.exists()
    link.symlink_to(tmp_path / "nothing")
    assert is_stale(link)
    listen(UnixAddress(path)).close()


def test_what_is_alive_stays_o121(tmp_path: Path) -> None:
    path, link = tmp_path / "s", tmp_path / "link"
    link.symlink_to(path)
    waiting: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(path))
        other.listen(0)
        for place in (path, link):
            with pytest.raises(DeviceBusyError, match=r"a process listens there \[O121\]"):
                listen(UnixAddress(place))
        try:  # until its queue is full
            while True:
                client = socket.socket(socket.AF_UNIX)
                waiting.append(client)
                client.setblocking(False)
                client.connect(os.fspath(path))
        except BlockingIOError:
            pass
        with pytest.raises(DeviceBusyError):
            is_stale(path)
    for client in waiting:
        client.close()
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(os.fspath(path))
        with pytest.raises(DeviceBusyError):
            listen(UnixAddress(path))


def test_other_files_stay_o121(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"mine")
    link.symlink_to(path)
    for place in (path, link):
        with pytest.raises(DeviceBusyError, match="is not a socket"):
            listen(UnixAddress(place))
    assert path.read_bytes() == b"mine"
    assert link.is_symlink()
    with pytest.raises(DeviceError, match="No such file"):
        listen(UnixAddress(tmp_path / "no" / "s"))
    with pytest.raises(DeviceError, match="too long"):
        listen(UnixAddress(tmp_path / ("n" * 200)))


def test_only_what_was_made_is_removed_o122(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = listen(UnixAddress(path))
    path.unlink()
    path.write_bytes(b"another's")
    listener.close()
    assert path.read_bytes() == b"another's"
    path.unlink()
    listener = listen(UnixAddress(path))
    listener.leave_name()
    listener.close()
    assert is_stale(path)


def test_a_file_with_the_same_number_is_another_o122(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / f"{number}"
        path.symlink_to("nothing")
        made = listening.MadeFile(path)
        path.unlink()
        path.symlink_to("nothing")
        made.remove()
        assert path.is_symlink()


def test_a_socket_that_cannot_be_finished_leaves_nothing_o122(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(DeviceError, match="not permitted"):
        listen(UnixAddress(tmp_path / "s", group=5))
    assert list(tmp_path.iterdir()) == []


def test_inherited_descriptors_keep_their_names_o122(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(path))
        other.listen()
        listener = listen(InheritedAddress(os.dup(other.fileno())))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
            found, _ = listener.socket.accept()
            with found:
                peer = peer_credentials(found)
                assert peer is not None
                assert peer == (os.getpid(), os.geteuid(), os.getegid())
                assert describe_peer(found).startswith(f"process {os.getpid()} of user ")
        listener.close()
        assert path.exists()
    with pytest.raises(DeviceError, match="cannot listen at descriptor 987"):
        listen(InheritedAddress(987))


def test_ports_are_taken_once() -> None:
    with listen(TcpAddress("localhost", 0)) as listener:
        port = listener.socket.getsockname()[1]
        with pytest.raises(DeviceBusyError, match=f"port {port} of 127.0.0.1"):
            listen(TcpAddress("127.0.0.1", port))
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert describe_peer(client) == "a client at 127.0.0.1"
            assert peer_credentials(client) is None
    with pytest.raises(DeviceError, match="example"):
        listen(TcpAddress("example", 1))


def test_addresses_are_written_as_usual() -> None:
    for text in ("127.0.0.1:1", "[::1]:0", "/run/a:1", "nbd.sock"):
        assert str(parse_address(text)) == text
    assert parse_address(":1") == TcpAddress("localhost", 1)
    for text in ("", "a\0b", "127.0.0.1:65536"):
        with pytest.raises(ArgumentError):
            parse_address(text)
