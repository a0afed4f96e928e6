"""What systemd passes and is told (O127 to O129), with sockets of the kernel."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from blobstore.sockets.inherited import inherited_descriptors
from blobstore.sockets.notifying import Notifier
from formats.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The socket of a service manager, of which the environment tells."""
    name = str(tmp_path / "notify")
    if request.param == "abstract":
        name = f"@blobstore-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        found.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield found


def test_the_manager_is_told_o128(manager: socket.socket) -> None:
    notifier = Notifier()
    assert "NOTIFY_SOCKET" not in os.environ
    notifier.ready("serving: store\nREADY=0")
    assert manager.recv(999) == b"READY=1\nSTATUS=serving: store READY=0"
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    first, second = manager.recv(999).split(b"\n")
    assert first == b"RELOADING=1"
    assert before <= int(second.removeprefix(b"MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notifier.status("x")
    notifier.stopping("y")
    notifier.succeeded(7)
    notifier.alive()
    found = [manager.recv(999) for _ in range(3)]
    assert found == [b"STATUS=x", b"STOPPING=1\nSTATUS=y", b"MAINPID=7"]
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(1)  # there is no watchdog


@pytest.mark.parametrize(("process", "wanted"), [(None, True), ("own", True), ("1", False)])
def test_the_watchdog_is_told_o129(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, process: str | None, wanted: bool
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    if process is not None:
        monkeypatch.setenv("WATCHDOG_PID", process.replace("own", str(os.getpid())))
    notifier = Notifier()
    assert notifier.watchdog == (3.0 if wanted else None)
    notifier.alive()
    notifier.status("x")
    assert manager.recv(99) == (b"WATCHDOG=1" if wanted else b"STATUS=x")


def test_no_manager_is_no_failure_o128(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    notifier = Notifier()
    assert notifier.watchdog is None
    notifier.ready("x")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    Notifier().ready("x")


SHOWS = """
import os, sys
from blobstore.sockets.inherited import inherited_descriptors
found = inherited_descriptors()
print({name: os.get_inheritable(one) for name, one in found.items()}, sorted(found.values()))
print([name for name in os.environ if name.startswith("LISTEN")])
"""


def test_systemd_passes_sockets_o127(tmp_path: Path) -> None:
    """By the real program; it starts the command when a client comes."""
    started = subprocess.Popen(
        [
            *("systemd-socket-activate", f"--listen={tmp_path}/a", f"--listen={tmp_path}/b"),
            *("--fdname=store:nbd", "--setenv=PYTHONPATH"),
            *(sys.executable, "-c", SHOWS),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not tmp_path.joinpath("b").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(tmp_path / "b"))
            said, _ = started.communicate(timeout=60)
    finally:
        started.kill()
        started.wait()
    assert said.decode().split("\n")[:2] == ["{'store': False, 'nbd': False} [3, 4]", "[]"]


@pytest.mark.parametrize(
    ("process", "count", "names", "said"),
    [
        ("own", "many", None, "must be a number"),
        ("own", "5000", None, "must be a number"),
        ("own", "2", "a", "names 1 descriptors, not 2"),
        ("own", "2", None, "two descriptors are called 'unknown'"),
        ("own", "2", "a:a", "two descriptors are called 'a'"),
        ("own", "1000", ":".join(f"n{number}" for number in range(1000)), "names descriptor"),
        ("1", "2", "a:a", None),
        (None, "2", "a:a", None),
        ("own", None, None, None),
    ],
)
def test_what_contradicts_itself_is_refused_o127(
    monkeypatch: pytest.MonkeyPatch,
    process: str | None,
    count: str | None,
    names: str | None,
    said: str | None,
) -> None:
    own = process and process.replace("own", str(os.getpid()))
    for name, value in [("PID", own), ("FDS", count), ("FDNAMES", names)]:
        if value is not None:
            monkeypatch.setenv(f"LISTEN_{name}", value)

    def require_open(descriptor: int, _inheritable: bool) -> None:
        os.fstat(descriptor)  # and those that are there stay as they are

    monkeypatch.setattr(os, "set_inheritable", require_open)
    if said is None:
        assert inherited_descriptors() == {}
    else:
        with pytest.raises(ArgumentError, match=said):
            inherited_descriptors()
