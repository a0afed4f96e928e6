"""`blobstore serve` as a service: systemd, the background, and reading its file again."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import blobstore
from blobstore.owner import StoreClient, serve
from blobstore.owner.owner import Owner
from blobstore.owner.server import OwnerServer
from blobstore.owner.serving.open_fronts import OpenFronts
from blobstore.owner.serving.places import Places
from blobstore.owner.serving.store_front import RunningStore
from blobstore.sockets.addresses import UnixAddress
from formats.errors import DeviceError
from formats.nbd.numbers import Command
from tests.nbd.support import Client, request
from tests.support.cli import with_signals
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from blobstore.sockets.addresses import Address
    from blobstore.sockets.listening import Listener


@pytest.fixture
def windows(image: Path) -> Path:
    """An image with two windows."""
    with blobstore.open(image) as store:
        store.register("w", 8192, "window")
        store.register("v", 8192, "window")
    return image


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a service manager, of which the environment tells."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(os.fspath(tmp_path / "notify"))
        found.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(tmp_path / "notify"))
        yield found


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(os.fspath(path)) == 0


class Reloading:
    """An owner with a file, which says when it has read that again."""

    def __init__(self, image: Path, runtime: Path, config: Path, manager: socket.socket) -> None:
        self.config, self._manager = config, manager
        self.owner = OwnerProcess(image, runtime, "--config", config)
        assert manager.recv(999).startswith(b"READY=1\n")

    def reload(self, text: str) -> str:
        """Return the status of the owner after that."""
        self.config.write_text(text)
        self.owner.process.send_signal(signal.SIGHUP)
        assert self._manager.recv(999).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        first, _, status = self._manager.recv(999).decode().partition("\n")
        assert first == "READY=1"
        return status


def write(client: Client, data: bytes) -> None:
    client.send(request(Command.WRITE, 0, data=data))
    assert client.reply().error == 0
    client.send(request(Command.FLUSH))
    assert client.reply().error == 0


def test_what_changed_is_opened_and_closed_and_the_rest_goes_on_o131(
    windows: Path, runtime: Path, tmp_path: Path, manager: socket.socket
) -> None:
    config = tmp_path / "serve.toml"
    first = f'[[nbd]]\nlisten = "{tmp_path}/1"\nexports = ["w"]\n'
    config.write_text(first)
    serving = Reloading(windows, runtime, config, manager)
    owner = serving.owner
    try:
        with StoreClient(owner.socket) as store, Client(tmp_path / "1") as device:
            device.begin("w")
            write(device, b"one")
            second = f'[[nbd]]\nname = "second"\nlisten = "{tmp_path}/2"\nmode = 0o660\n'
            assert serving.reload(first + second) == "STATUS=serving: store, nbd, second"
            assert stat.S_IMODE((tmp_path / "2").stat().st_mode) == 0o660
            write(device, b"two")
            with Client(tmp_path / "2") as other:
                other.begin("v")
                # What is said of it changes, and its socket stays.
                inode = (tmp_path / "2").stat().st_ino
                status = serving.reload(first + second.replace("660", "600") + 'exports = ["v"]')
                assert status == "STATUS=serving: store, nbd, second"
                assert (tmp_path / "2").stat().st_ino == inode
                assert stat.S_IMODE((tmp_path / "2").stat().st_mode) == 0o600
                with pytest.raises(EOFError):
                    write(other, b"gone")
            with Client(tmp_path / "2") as other, pytest.raises(LookupError):
                other.begin("w", structured=False)
            assert serving.reload(first) == "STATUS=serving: store, nbd"
            assert not (tmp_path / "2").exists()
            write(device, b"three")
            store.put("a", b"1")
        # The store's own socket, with its entry.
        assert serving.reload(f'[store]\npath = "{tmp_path}/s"') == "STATUS=serving: store"
        assert owner.socket.readlink() == tmp_path / "s"
        assert not (tmp_path / "1").exists()
        assert owner.run("get", windows, "a").stdout == b"1"
        assert serving.reload("") == "STATUS=serving: store"
        assert not owner.socket.is_symlink()
        assert not (tmp_path / "s").exists()
        assert owner.run("get", windows, "w").stdout[:5] == b"three"
    finally:
        code, said = owner.end()
    assert code == 0
    assert said.count(b"the configuration was read again") == 5
    assert manager.recv(999).startswith(b"STOPPING=1\n")
    assert list(runtime.iterdir()) == []


def test_a_configuration_with_an_error_changes_nothing_o132(
    windows: Path, runtime: Path, tmp_path: Path, manager: socket.socket
) -> None:
    config = tmp_path / "serve.toml"
    good = f'[[nbd]]\nlisten = "{tmp_path}/1"\n'
    config.write_text(good)
    (tmp_path / "file").write_bytes(b"mine")
    serving = Reloading(windows, runtime, config, manager)
    try:
        with Client(tmp_path / "1") as device:
            device.begin("w")
            new = f'[[nbd]]\nname = "new"\nlisten = "{tmp_path}/2"\n'
            twice = f'{good}name = "p"\n{good}name = "q"\n'
            changed = good + "mode = 0o666\n"
            for text, said in [
                ("nonsense", "is not TOML"),
                ("[[ndb]]", "there is no key `ndb`"),
                (
                    changed + new + f'[[nbd]]\nname = "x"\nlisten = "{tmp_path}/file"',
                    "not a socket",
                ),
                (changed + new + '[[nbd]]\nname = "y"\n', "y: there is no address to listen at"),
                (twice, "a process listens there"),
                (new + f'[store]\npath = "{tmp_path}/file"', "is not a socket"),
            ]:
                assert said in serving.reload(text)
                write(device, said.encode())
                assert stat.S_IMODE((tmp_path / "1").stat().st_mode) == 0o600
                assert not (tmp_path / "2").exists()
            config.unlink()
            serving.owner.process.send_signal(signal.SIGHUP)
            manager.recv(999)
            assert b"cannot read" in manager.recv(999)
            write(device, b"still")
    finally:
        code, said_last = serving.owner.end()
    assert code == 0
    assert said_last.count(b"everything stays as it is") == 7
    assert (tmp_path / "file").read_bytes() == b"mine"


class FakeFront(NamedTuple):
    """An entry whose front cannot be started if ``fails`` says so."""

    name: str
    path: Path
    fails: bool = False

    def sockets(self, image: Path) -> Mapping[str, Address | None]:
        del image
        return {self.name: UnixAddress(self.path)}

    def start(self, owner: Owner, listeners: Mapping[str, Listener]) -> RunningStore:
        if self.fails:
            raise DeviceError("it cannot be started")
        running = RunningStore(owner, listeners[self.name])
        owner.add(running)
        return running


class FakeConfig(NamedTuple):
    entries: tuple[FakeFront, ...]

    def fronts(self) -> tuple[FakeFront, ...]:
        return self.entries


def test_a_front_that_cannot_be_started_changes_nothing_o132(
    store: blobstore.Store, image: Path, tmp_path: Path
) -> None:
    first, second = FakeFront("store", tmp_path / "1"), FakeFront("second", tmp_path / "2")
    fronts = OpenFronts(Owner(store, image), Places({}))
    config: Any = FakeConfig((first, second))
    fronts.start(config, fronts.prepare(config))
    try:
        for changed in (
            (first, second._replace(fails=True)),
            (first, second._replace(path=tmp_path / "3", fails=True)),
            (first._replace(path=tmp_path / "4"), second._replace(fails=True)),
            (first, FakeFront("third", tmp_path / "5", fails=True), second),
        ):
            wanted: Any = FakeConfig(changed)
            with pytest.raises(DeviceError, match="cannot be started"):
                fronts.change(wanted)
            assert sorted(path.name for path in tmp_path.glob("[1-9]")) == ["1", "2"]
            for path in ("1", "2"):
                with StoreClient(tmp_path / path) as client:
                    assert "a" in client
        wanted = FakeConfig((first,))
        fronts.change(wanted)
        assert [name for name, _ in fronts.listeners()] == ["store"]
        assert not (tmp_path / "2").exists()
    finally:
        fronts.close()
    assert not list(tmp_path.glob("[1-9]"))


def test_without_a_file_a_hangup_ends_it_o131(image: Path, runtime: Path) -> None:
    owner = OwnerProcess(image, runtime)
    assert owner.end(signal.SIGHUP)[0] == 0
    assert list(runtime.iterdir()) == []


def test_systemd_starts_it_when_a_client_comes_o127_o128(
    windows: Path, runtime: Path, tmp_path: Path, manager: socket.socket
) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("[[nbd]]\nexports = ['w']")
    passed = ("PYTHONPATH", "BLOBSTORE_RUNTIME_DIR", "NOTIFY_SOCKET", "WATCHDOG_USEC")
    process = subprocess.Popen(
        [
            *with_signals(default=("TERM",)),
            *("systemd-socket-activate", f"--listen={tmp_path}/s", f"--listen={tmp_path}/n"),
            *("--fdname=store:nbd", *(f"--setenv={name}" for name in passed)),
            *(sys.executable, "-m", "blobstore", "-q", "serve", str(windows), "--config", config),
        ],
        env={**os.environ, "WATCHDOG_USEC": "200000"},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until((tmp_path / "n").exists)
        with Client(tmp_path / "n", timeout=60) as device:
            device.begin("w")
            write(device, b"written")
        said = [manager.recv(999).split(b"\n")[0] for _ in range(4)]
        assert said == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        with StoreClient(tmp_path / "s") as store:
            assert store.get("w")[:7] == b"written"
        (entry,) = runtime.iterdir()
        assert entry.readlink() == tmp_path / "s"
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert list(runtime.iterdir()) == []
    # systemd has made these.
    assert (tmp_path / "s").exists()
    assert (tmp_path / "n").exists()


@pytest.mark.parametrize(
    ("names", "code", "said"),
    [
        ("store:other", 2, "no front wants the descriptor 'other'"),
        ("store:store", 2, "two descriptors are called 'store'"),
    ],
)
def test_descriptors_that_do_not_fit_are_refused_o127(
    image: Path, runtime: Path, tmp_path: Path, names: str, code: int, said: str
) -> None:
    del runtime
    process = subprocess.Popen(
        [
            *("systemd-socket-activate", f"--listen={tmp_path}/s", f"--listen={tmp_path}/n"),
            *(f"--fdname={names}", "--setenv=PYTHONPATH", "--setenv=BLOBSTORE_RUNTIME_DIR"),
            *(sys.executable, "-m", "blobstore", "serve", str(image)),
        ],
        stderr=subprocess.PIPE,
    )
    try:
        wait_until((tmp_path / "n").exists)
        wait_until(lambda: listens(tmp_path / "s"))
        _, text = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert said in text.decode()


def test_sockets_of_systemd_need_no_runtime_directory_o127(image: Path, tmp_path: Path) -> None:
    """As for a service whose user has none."""
    program = "import os; os.geteuid = lambda: 1\nfrom blobstore.__main__ import start; start()"
    started = [sys.executable, "-c", program, "serve", str(image)]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("BLOBSTORE_RUNTIME_DIR", "XDG_RUNTIME_DIR")
    }
    done = subprocess.run(started, env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, b"no runtime directory" in done.stderr) == (20, True)
    process = subprocess.Popen(
        [
            *with_signals(default=("TERM",)),
            *("systemd-socket-activate", f"--listen={tmp_path}/s", "--fdname=store"),
            *("--setenv=PYTHONPATH", *started),
        ],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until((tmp_path / "s").exists)
        with StoreClient(tmp_path / "s") as store:
            assert store.state().process == process.pid
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_a_thread_that_ends_ends_the_owner(
    store: blobstore.Store, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("there is no memory")

    monkeypatch.setattr(OwnerServer, "run", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        serve(store, image, socket=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_it_goes_into_the_background_when_all_is_ready_o126(
    image: Path, runtime: Path, tmp_path: Path
) -> None:
    pid, log = tmp_path / "pid", tmp_path / "log"
    command = [
        *with_signals(default=("TERM",)),
        *(sys.executable, "-m", "blobstore", "serve", str(image), "--daemon"),
        *("--pid", f"file={pid}", "--log", f"file={log},level=2"),
    ]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    process = int(pid.read_text())
    try:
        (path,) = runtime.iterdir()
        with StoreClient(path) as store:
            assert store.owner is not None
            assert store.owner[0] == process == store.state().process
    finally:
        os.kill(process, signal.SIGTERM)
    wait_until(lambda: not pid.exists())
    wait_until(lambda: not path.exists())
    assert f"a connection from process {os.getpid()}" in log.read_text()
    assert not list(tmp_path.glob("*.sock"))
    # A failure before that is the command's.
    with blobstore.open(image):
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 23
    assert not pid.exists()


def test_the_background_has_what_systemd_passes_o126_o127(
    image: Path, runtime: Path, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    process = subprocess.Popen(
        [
            *with_signals(default=("TERM",)),
            *("systemd-socket-activate", f"--listen={tmp_path}/s", "--fdname=store"),
            *("--setenv=PYTHONPATH", "--setenv=BLOBSTORE_RUNTIME_DIR", sys.executable, "-m"),
            *("blobstore", "serve", str(image), "--daemon", "--pid", f"file={pid}"),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until((tmp_path / "s").exists)
        with StoreClient(tmp_path / "s") as store:
            found = store.state().process
        assert process.wait(60) == 0
        assert found == int(pid.read_text()) != process.pid
        os.kill(found, signal.SIGTERM)
        wait_until(lambda: not pid.exists())
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not list(runtime.iterdir()))
