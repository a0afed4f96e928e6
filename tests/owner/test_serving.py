"""`blobstore serve` as a process: its socket, its end, its sudden end, and who finds it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import threading
import time
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.image.place import runtime_directory
from blobstore.owner import StoreClient, find_owner
from formats.errors import DeviceBusyError, DeviceError
from tests.support.cli import QUICK, succeeds
from tests.support.foreign import run
from tests.support.owners import OwnerProcess, owner_thread
from tests.support.waits import ends

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def owner(image: Path, runtime: Path) -> Iterator[OwnerProcess]:
    process = OwnerProcess(image, runtime)
    yield process
    process.end()


def test_the_socket_is_private_and_goes_with_its_owner_o3_o5_o6(
    owner: OwnerProcess, image: Path, runtime: Path
) -> None:
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    assert stat.S_IMODE(owner.socket.stat().st_mode) == 0o600
    with pytest.raises(DeviceBusyError, match=f"process {owner.process.pid}"):
        blobstore.open(image, direct=True)
    found = find_owner(image)
    assert found is not None
    with found:
        assert found.owner == (owner.process.pid, os.geteuid(), os.getegid())
        found.put("a", b"1")
    code, said = owner.end()
    assert code == 0
    assert f"process {os.getpid()} of user {os.geteuid()}".encode() in said
    assert list(runtime.iterdir()) == []
    with blobstore.open(image, read_only=True) as store:
        assert store.info().clean
        assert store.get("a") == b"1"
    assert find_owner(image) is None


SIGNALLED = """
import signal, sys
import blobstore
from blobstore import owner
from tests.support.waits import signal_without_interrupting
with blobstore.open(sys.argv[1]) as store:
    owner.serve(
        store, sys.argv[1],
        ready=lambda _: signal_without_interrupting(signal.SIGTERM, 0.3),
    )
"""


def test_a_signal_that_interrupts_no_wait_ends_it_o6(image: Path, runtime: Path) -> None:
    """As one does that comes after the last bytecode before the wait."""
    del runtime
    ends(SIGNALLED, image)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_idle_clients_do_not_delay_the_end_o6(owner: OwnerProcess, number: signal.Signals) -> None:
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(owner.socket))
        idle.sendall(b"GET /v1/store HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        assert owner.end(number)[0] == 0
        assert time.monotonic() - began < 20
        assert idle.recv(1) == b""


def test_windows_are_block_devices_beside_the_store_n24_n27(
    image: Path, runtime: Path, tmp_path: Path
) -> None:
    with blobstore.open(image) as store:
        store.register("flash", 1 << 16, "window")
    devices, content = tmp_path / "nbd.sock", random.Random(1).randbytes(1 << 16)
    (tmp_path / "new").write_bytes(content)
    owner = OwnerProcess(image, runtime, "--nbd", devices)
    try:
        run("nbdcopy", "--flush", tmp_path / "new", f"nbd+unix:///flash?socket={devices}")
        assert owner.run("get", image, "flash").stdout == content
        assert owner.run("put", image, "a", "-", stdin=b"blob").returncode == 0
    finally:
        assert owner.end()[0] == 0
    assert not devices.exists()
    with blobstore.open(image, read_only=True) as store:
        assert (store.get("flash"), store.get("a")) == (content, b"blob")


def test_verbs_find_the_owner_o41(owner: OwnerProcess, image: Path, tmp_path: Path) -> None:
    assert owner.run("put", image, "a", "-", stdin=b"blob").returncode == 0
    assert owner.run("get", image, "a").stdout == b"blob"
    link = tmp_path / "link"
    link.symlink_to(image)
    hard = tmp_path / "hard"
    hard.hardlink_to(image)
    assert owner.run("get", link, "a").stdout == owner.run("get", hard, "a").stdout == b"blob"
    assert owner.run("mv", image, "a", "c").returncode == 0
    assert owner.run("resize", image, "c", "9").returncode == 0
    assert owner.run("rm", image, "b").returncode == 0
    listed = json.loads(owner.run("ls", image, "--json").stdout)
    assert [(one["name"], one["max_size"]) for one in listed] == [("c", 9)]
    info = json.loads(owner.run("info", image, "--json").stdout)
    assert info["owner"]["process"] == owner.process.pid
    assert info["container"]["generation"] == 5
    assert f"process  {owner.process.pid}" in owner.run("info", image).stdout.decode()
    # Errors are as without an owner.
    for arguments, code in [
        (("get", image, "missing"), 61),
        (("get", image, "c", "--at-least-generation", "5"), 0),
        (("get", image, "c", "--at-least-generation", "6"), 75),
        (("get", image, "c", "--expect-digest", "5:" + "0" * 64), 75),
        (("rm", image, "c", "missing"), 61),
        (("get", image, "c", "--direct"), 23),
        (("put", image, "c", "/dev/null", "--direct"), 23),
        (("grow", image, "9M"), 0),
        (("grow", image, "9M", "--direct"), 23),
        (("serve", image), 23),
        (("get", image, "c", "--no-lock"), 0),
    ]:
        done = owner.run(*arguments)
        assert done.returncode == code, (arguments, done)
        if code == 23:
            assert f"process {owner.process.pid} (blobstore serve) owns".encode() in done.stderr


def test_an_owner_has_the_secret_and_its_clients_need_none_o5(
    tmp_path: Path, runtime: Path
) -> None:
    image, key = tmp_path / "encrypted", tmp_path / "key"
    key.write_bytes(b"secret")
    succeeds("create", image, "--section", "a=10", "--key-file", key, *QUICK)
    owner = OwnerProcess(image, runtime, "--key-file", key)
    try:
        assert owner.run("put", image, "a", "-", stdin=b"blob").returncode == 0
        assert owner.run("get", image, "a").stdout == b"blob"
        assert owner.run("get", image, "a", "--direct").returncode == 52
    finally:
        owner.end()
    assert owner.run("get", image, "a", "--key-file", key).stdout == b"blob"


def test_the_socket_can_be_elsewhere_o3(image: Path, runtime: Path, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere"
    owner = OwnerProcess(image, runtime, "--socket", path)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert owner.socket.readlink() == path
        assert owner.run("put", image, "a", "-", stdin=b"1").returncode == 0
        with StoreClient(path) as client:
            assert client.get("a") == b"1"
    finally:
        owner.end()
    assert not path.exists()
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize("option", [False, True])
def test_what_a_dead_owner_left_is_replaced_o4(
    image: Path, runtime: Path, tmp_path: Path, option: bool
) -> None:
    more = ("--socket", tmp_path / "socket") if option else ()
    dead = OwnerProcess(image, runtime, *more)
    dead.end(signal.SIGKILL)
    assert dead.socket.is_symlink() or dead.socket.exists()
    assert find_owner(image) is None
    assert dead.run("put", image, "a", "-", stdin=b"direct").returncode == 0
    for options in (more, (), ("--socket", tmp_path / "socket")):
        owner = OwnerProcess(image, runtime, *options)
        assert owner.run("get", image, "a").stdout == b"direct"
        owner.end(signal.SIGKILL)


def test_a_live_socket_and_other_files_are_left_alone_o4(
    image: Path, runtime: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    blobstore.create(other, {"other": 10}, encrypted=False).close()
    path = tmp_path / "socket"
    owner = OwnerProcess(image, runtime, "--socket", path)
    try:
        refused = owner.run("serve", other, "--socket", path)
        assert (refused.returncode, b"listens" in refused.stderr) == (23, True)
        assert owner.run("get", image, "a").returncode == 62
    finally:
        owner.end()
    path.write_bytes(b"a file")
    refused = owner.run("serve", other, "--socket", path)
    assert (refused.returncode, b"not a socket" in refused.stderr) == (20, True)
    assert path.read_bytes() == b"a file"
    long = owner.run("serve", other, "--socket", tmp_path / ("x" * 200))
    assert (long.returncode, b"107 bytes" in long.stderr) == (20, True)


def test_a_runtime_directory_of_others_is_refused_o2(
    image: Path, runtime: Path, store: blobstore.Store, tmp_path: Path
) -> None:
    runtime.mkdir()
    runtime.chmod(0o777)
    with (
        pytest.raises(DeviceError, match=r"others can write .* \[O2\]"),
        owner_thread(store, image, tmp_path / "socket"),
    ):
        pass


def test_where_the_runtime_directory_is_o2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOBSTORE_RUNTIME_DIR", "/chosen")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/user")
    assert str(runtime_directory()) == "/chosen"
    monkeypatch.delenv("BLOBSTORE_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(runtime_directory()) == "/run/blobstore"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert str(runtime_directory()) == "/user/blobstore"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_directory() is None
    monkeypatch.setenv("BLOBSTORE_RUNTIME_DIR", "/chosen")
    monkeypatch.delattr(os, "geteuid")  # as on Windows
    assert runtime_directory() is None


def test_an_owner_that_goes_away_is_an_error_o34(owner: OwnerProcess, image: Path) -> None:
    client = find_owner(image)
    assert client is not None
    with client:
        client.put("a", b"1")
        owner.end(signal.SIGKILL)
        with pytest.raises(DeviceError):
            client.put("a", b"2")
        with pytest.raises(DeviceError, match="no owner answers"):
            client.get("a")


def test_nothing_that_was_acknowledged_is_lost_o22(image: Path, runtime: Path) -> None:
    """SIGKILL while clients put: each section has what was acknowledged last, or the next."""
    generator = random.Random(15)
    acknowledged = {"a": 0, "b": 0}
    numbers = {name: f"{0:0900}".encode() for name in acknowledged}
    with blobstore.open(image) as store:
        for name, blob in numbers.items():
            store.put(name, blob)
    for _ in range(6):
        owner = OwnerProcess(image, runtime)

        def put(name: str) -> None:
            with StoreClient(owner.socket) as client:  # noqa: B023  joined below
                while True:
                    try:
                        client.put(name, f"{acknowledged[name] + 1:0900}".encode())
                    except DeviceError:
                        return
                    acknowledged[name] += 1

        threads = [threading.Thread(target=put, args=(name,)) for name in acknowledged]
        for thread in threads:
            thread.start()
        enough = sum(acknowledged.values()) + generator.randint(1, 20)
        deadline = time.monotonic() + 120
        while sum(acknowledged.values()) < enough:
            assert time.monotonic() < deadline
            time.sleep(generator.uniform(0, 0.002))
        owner.end(signal.SIGKILL)
        for thread in threads:
            thread.join(60)
        with blobstore.open(image) as store:
            assert store.verify()
            for name, number in acknowledged.items():
                found = int(store.get(name))
                assert number <= found <= number + 1
                acknowledged[name] = found
    assert min(acknowledged.values()) > 0
