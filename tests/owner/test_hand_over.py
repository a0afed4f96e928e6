"""Replacing an owner while it serves (O135 to O138), and what a SIGKILL leaves of that."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Self

import pytest

import blobstore
from blobstore.owner import StoreClient
from blobstore.owner.exchange import Exchange
from blobstore.owner.serving import handing
from formats.errors import DeviceError
from formats.nbd.numbers import Command
from tests.nbd.support import Client, request
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from pathlib import Path

SERVING = "blobstore.owner.serving"
#: At which the successor is killed.
OF_THE_SUCCESSOR = [
    f"{SERVING}.handing:Predecessor.__init__:before",
    f"{SERVING}.handing:Messages.send:before",
    f"{SERVING}.handing:Predecessor.__init__:after",
    f"{SERVING}.open_fronts:OpenFronts.prepare:after",
    f"{SERVING}.handing:Predecessor.released:after",
    "blobstore.image.layers:LayersLock.acquire:after",
    "blobstore.owner.owner:Owner.take_over:after",
    f"{SERVING}.open_fronts:OpenFronts.start:after",
]
#: The successor is killed when it has taken the image, and the owner has ended.
AFTER_IT = [
    f"{SERVING}.handing:Predecessor.taken:after",
    f"{SERVING}.open_fronts:OpenFronts.take_names:after",
]
#: At which the owner is killed.
OF_THE_OWNER = [
    f"{SERVING}.handing:Messages.require_trusted:before",
    f"{SERVING}.handing:Messages.send:before",
    f"{SERVING}.handing:Messages.send:after",
    f"{SERVING}.service:Service._hand_over:before",
    f"{SERVING}.store_front:RunningStore.suspend:after",
    "blobstore.nbd.server:NbdServer.suspend:after",
    "blobstore.store.store:Store.release:before",
    "blobstore.store.store:Store.release:after",
    f"{SERVING}.handing:Messages.send:after:2",
    f"{SERVING}.service:Service._is_taken:after",
    f"{SERVING}.open_fronts:OpenFronts.close:before",
    f"{SERVING}.open_fronts:OpenFronts.close:after",
]


class Counting:
    """A client that connects for each put, and knows which was acknowledged last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ends = False
        self.acknowledged = 0
        self.refused = 0
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        self._thread.join(120)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure

    def goes_on(self, owner: OwnerProcess) -> bool:
        """Say whether an owner, the only one, answers; or has ended."""
        known = self.acknowledged
        deadline = time.monotonic() + 120
        # One put may have been acknowledged by the owner before, and not been counted yet.
        while self.acknowledged < known + 2:
            if owner.process.poll() is not None:
                owner.ended()
                return False
            assert self.failure is None, self.failure
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return True

    def wait_for(self, puts: int) -> None:
        """Wait until so many more puts were acknowledged."""
        wanted = self.acknowledged + puts
        deadline = time.monotonic() + 120
        while self.acknowledged < wanted:
            assert self.failure is None, self.failure
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def _run(self) -> None:
        try:
            while not self._ends:
                self._put()
        except BaseException as error:  # noqa: BLE001  raised in the thread of the test
            self.failure = error

    def _put(self) -> None:
        try:
            client = StoreClient(self._path, timeout=100)
        except DeviceError as error:
            if isinstance(error.__cause__, (ConnectionRefusedError, FileNotFoundError)):
                self.refused += 1
            time.sleep(0.005)
            return
        with client:
            try:
                found = int(client.get("a"))
                # Nothing that was acknowledged is lost; what was not may have been done.
                assert self.acknowledged <= found <= self.acknowledged + 1
                self.acknowledged = found
                client.put("a", str(found + 1).encode())
            except DeviceError:
                return  # the connection was closed
            self.acknowledged += 1


@pytest.fixture
def windows(image: Path) -> Path:
    with blobstore.open(image) as store:
        store.register("w", 8192, "window")
        store.put("a", b"0")
    return image


def options(tmp_path: Path) -> tuple[object, ...]:
    return (
        *("--socket", tmp_path / "s.sock", "--nbd", tmp_path / "n.sock"),
        *("--log", f"file={tmp_path}/log,level=1"),
    )


def write(client: Client, data: bytes) -> None:
    client.send(request(Command.WRITE, 0, data=data))
    assert client.reply().error == 0


def require_sound(image: Path, acknowledged: int) -> None:
    with blobstore.open(image) as store:
        assert store.verify()
        assert acknowledged <= int(store.get("a")) <= acknowledged + 1


def test_no_client_is_refused_and_nothing_is_lost_o136_o138(
    windows: Path, runtime: Path, tmp_path: Path
) -> None:
    owner = OwnerProcess(windows, runtime, *options(tmp_path))
    with Counting(tmp_path / "s.sock") as counting:
        for number in range(3):
            with Client(tmp_path / "n.sock") as device:
                device.begin("w", structured=False)
                write(device, b"%d" % number)  # without a flush
                counting.wait_for(5)
                successor = OwnerProcess(windows, runtime, *options(tmp_path), "--replace")
                assert owner.ended() == 0
                with pytest.raises(EOFError):  # unanswered, so it is sent again
                    write(device, b"lost")
            owner = successor
            assert owner.socket.readlink() == tmp_path / "s.sock"
            assert owner.run("get", windows, "w").stdout[:1] == b"%d" % number
            counting.wait_for(5)
    assert counting.refused == 0
    assert owner.end()[0] == 0
    assert not list(tmp_path.glob("*.sock"))
    assert list(runtime.iterdir()) == []
    require_sound(windows, counting.acknowledged)
    assert tmp_path.joinpath("log").read_text().count("took everything over in") == 3


def test_requests_in_progress_are_answered_first_o136(
    windows: Path, runtime: Path, tmp_path: Path
) -> None:
    owner = OwnerProcess(windows, runtime, *options(tmp_path))
    with socket.socket(socket.AF_UNIX) as slow, socket.socket(socket.AF_UNIX) as idle:
        for client in (slow, idle):
            client.settimeout(60)
            client.connect(str(tmp_path / "s.sock"))
        # The first is received as a whole, the second is not.
        slow.sendall(b"POST /v1/verify HTTP/1.1\r\nHost: x\r\n\r\n")
        idle.sendall(b"PUT /v1/sections/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
        successor = OwnerProcess(windows, runtime, *options(tmp_path), "--replace")
        assert slow.recv(999).startswith(b"HTTP/1.1 200 ")
        assert slow.recv(999).find(b"HTTP") == -1
        assert b" 204 " not in idle.recv(999)
    assert owner.ended() == 0
    assert successor.run("get", windows, "a").stdout == b"0"
    assert successor.end()[0] == 0


def test_other_sockets_are_opened_and_closed_o136_o138(
    windows: Path, runtime: Path, tmp_path: Path
) -> None:
    first = ("--nbd", tmp_path / "n1", "--nbd", tmp_path / "n2")
    owner = OwnerProcess(windows, runtime, *first)
    inode = tmp_path.joinpath("n2").stat().st_ino
    second = ("--nbd", tmp_path / "n2", "--nbd", tmp_path / "n3", "--socket-mode", "0660")
    successor = OwnerProcess(windows, runtime, *second, "--replace")
    assert owner.ended() == 0
    assert not tmp_path.joinpath("n1").exists()
    assert tmp_path.joinpath("n2").stat().st_ino == inode
    assert tmp_path.joinpath("n2").stat().st_mode & 0o777 == 0o660
    with Client(tmp_path / "n2") as listed, Client(tmp_path / "n3") as device:
        listed.greet()
        device.begin("w")
    assert successor.end()[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image", "run"]
    assert list(runtime.iterdir()) == []


def test_without_an_owner_it_is_a_start_o135(windows: Path, runtime: Path, tmp_path: Path) -> None:
    owner = OwnerProcess(windows, runtime, *options(tmp_path), "--replace")
    owner.end(signal.SIGKILL)
    for _ in range(2):  # each finds what the one before left
        owner = OwnerProcess(windows, runtime, *options(tmp_path), "--replace")
        assert owner.run("put", windows, "a", "-", stdin=b"1").returncode == 0
        owner.end(signal.SIGKILL)
    with blobstore.open(windows):
        done = owner.run("serve", windows, "--replace")
    assert (done.returncode, b"in use" in done.stderr) == (23, True)


def test_the_service_manager_follows_o128(
    windows: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        pid = tmp_path / "pid"
        owner = OwnerProcess(windows, runtime, "--pid", f"file={pid}")
        assert manager.recv(99).startswith(b"READY=1")
        successor = OwnerProcess(windows, runtime, "--pid", f"file={pid}", "--replace")
        assert owner.ended() == 0
        said = {manager.recv(99).split(b"\n")[0] for _ in range(2)}
        assert said == {b"READY=1", f"MAINPID={successor.process.pid}".encode()}
    assert int(pid.read_text()) == successor.process.pid
    assert successor.end()[0] == 0
    assert not pid.exists()


def test_a_successor_that_fails_changes_nothing_o137(
    windows: Path, runtime: Path, tmp_path: Path
) -> None:
    owner = OwnerProcess(windows, runtime, *options(tmp_path))
    tmp_path.joinpath("file").write_bytes(b"mine")
    with Counting(tmp_path / "s.sock") as counting, Client(tmp_path / "n.sock") as device:
        device.begin("w", structured=False)
        for wrong in (
            ("--nbd", tmp_path / "file"),
            ("--at-least-generation", "9999999"),
            ("--socket", tmp_path / "elsewhere"),
        ):
            done = owner.run("serve", windows, *options(tmp_path), *wrong, "--replace")
            assert done.returncode in (23, 75), done
            write(device, b"goes on")
            counting.wait_for(3)
    assert counting.refused == 0
    assert owner.end()[0] == 0
    require_sound(windows, counting.acknowledged)


@pytest.mark.parametrize("point", OF_THE_SUCCESSOR)
def test_a_successor_that_is_killed_leaves_the_owner_serving_o137(
    windows: Path, runtime: Path, tmp_path: Path, point: str
) -> None:
    owner = OwnerProcess(windows, runtime, *options(tmp_path))
    with Counting(tmp_path / "s.sock") as counting, Client(tmp_path / "n.sock") as device:
        device.begin("w", structured=False)
        write(device, b"before")
        program = ("tests.owner.dying", point)
        dead = OwnerProcess(
            windows, runtime, *options(tmp_path), "--replace", program=program, waits=False
        )
        assert dead.ended() == -signal.SIGKILL
        counting.wait_for(3)
        write(device, b"after")  # it did not lose its connection
    assert counting.refused == 0
    assert owner.end()[0] == 0
    assert not list(tmp_path.glob("*.sock"))
    require_sound(windows, counting.acknowledged)


@pytest.mark.parametrize("point", AFTER_IT)
def test_a_successor_that_is_killed_later_leaves_an_image_to_open_o137(
    windows: Path, runtime: Path, tmp_path: Path, point: str
) -> None:
    owner = OwnerProcess(windows, runtime, *options(tmp_path))
    with Counting(tmp_path / "s.sock") as counting:
        counting.wait_for(2)
        program = ("tests.owner.dying", point)
        dead = OwnerProcess(
            windows, runtime, *options(tmp_path), "--replace", program=program, waits=False
        )
        assert dead.ended() == -signal.SIGKILL
        assert owner.ended() == 0
        owner = OwnerProcess(windows, runtime, *options(tmp_path))
        counting.wait_for(3)
    assert owner.end()[0] == 0
    require_sound(windows, counting.acknowledged)


@pytest.mark.parametrize("point", OF_THE_OWNER)
def test_an_owner_that_is_killed_is_replaced_o137(
    windows: Path, runtime: Path, tmp_path: Path, point: str
) -> None:
    owner = OwnerProcess(windows, runtime, *options(tmp_path), program=("tests.owner.dying", point))
    with Counting(tmp_path / "s.sock") as counting:
        counting.wait_for(2)
        successor = OwnerProcess(windows, runtime, *options(tmp_path), "--replace", waits=False)
        assert owner.ended() == -signal.SIGKILL
        try:
            successor.wait()
        except AssertionError:
            # It was killed before it passed anything on.
            assert point == OF_THE_OWNER[0] or point == OF_THE_OWNER[1]
            assert successor.end()[0] != 0
            successor = OwnerProcess(windows, runtime, *options(tmp_path), "--replace")
        counting.wait_for(3)
        with Client(tmp_path / "n.sock") as device:
            device.begin("w", structured=False)
            write(device, b"on")
    assert successor.end()[0] == 0
    assert not list(tmp_path.glob("*.sock"))
    assert list(runtime.iterdir()) == []
    require_sound(windows, counting.acknowledged)


@pytest.mark.slow
def test_one_of_two_that_is_killed_at_any_time_leaves_one_owner_o137(
    windows: Path, runtime: Path, tmp_path: Path
) -> None:
    """SIGKILL at random moments: one goes on, or the next opens what is there."""
    generator = random.Random(37)
    owner = OwnerProcess(windows, runtime, *options(tmp_path))
    takes = 0.0
    ended = set()
    with Counting(tmp_path / "s.sock") as counting:
        for _ in range(8):
            counting.wait_for(2)
            began = time.monotonic()
            successor = OwnerProcess(windows, runtime, *options(tmp_path), "--replace", waits=False)
            if not takes:  # how long it takes here
                assert owner.ended() == 0
                takes = time.monotonic() - began
                owner = successor
                continue
            time.sleep(generator.uniform(0.6, 1.1) * takes)
            victim, other = generator.choice([(owner, successor), (successor, owner)])
            victim.process.kill()
            victim.ended()
            ended.add(victim is owner)
            if counting.goes_on(other):
                owner = other
            else:  # it had ended, or had nothing to begin with
                owner = OwnerProcess(windows, runtime, *options(tmp_path), "--replace")
        counting.wait_for(2)
    assert owner.end()[0] == 0
    assert ended == {False, True}
    require_sound(windows, counting.acknowledged)


def test_an_owner_that_ends_in_good_order_is_replaced_o137(
    windows: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends when it has passed its sockets on, and takes their names with it."""
    owner = OwnerProcess(windows, runtime, *options(tmp_path))
    owner.run("put", windows, "a", "-", stdin=b"7")
    monkeypatch.setenv("ENDS", str(owner.process.pid))
    point = f"{SERVING}.open_fronts:OpenFronts.prepare:after"
    successor = OwnerProcess(
        windows, runtime, *options(tmp_path), "--replace", program=("tests.owner.dying", point)
    )
    assert owner.ended() == 0
    assert successor.run("get", windows, "a").stdout == b"7"
    with Client(tmp_path / "n.sock") as device:
        device.begin("w")
    assert successor.end()[0] == 0
    assert not list(tmp_path.glob("*.sock"))


def test_silent_and_wrong_successors_change_nothing_o135_o136(
    windows: Path, runtime: Path, tmp_path: Path
) -> None:
    owner = OwnerProcess(windows, runtime, *options(tmp_path))
    exchange = Exchange(tmp_path / "s.sock")
    answer = exchange.ask("POST", "/v1/hand-over")
    assert (answer.status, answer.headers["upgrade"]) == (426, "blobstore-hand-over")
    exchange.close()
    for said in (
        b"{}\n",
        b"nonsense\n",
        b"{}\n[]\n",
        b'{"kinds": 5}\n',
        b'{}\n{"wanted": 5}\n',
        b'{"kinds": ["tpm-1"]}\n{"wanted": [[]]}\n',
        b"{}\n" + b"x" * 70000,
        b'{}\n{"error": "no"}\n',
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(tmp_path / "s.sock"))
            client.sendall(
                b"POST /v1/hand-over HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n"
                b"Upgrade: blobstore-hand-over\r\n\r\n"
            )
            assert client.recv(999).startswith(b"HTTP/1.1 101 ")
            client.sendall(said)
            if said == b"{}\n":
                client.recv(1)
                # While one is considering, no other one is.
                with pytest.raises(DeviceError, match="another process is taking over"):
                    handing.Predecessor(tmp_path / "s.sock")
        assert owner.run("put", windows, "a", "-", stdin=b"1").returncode == 0
    # One that never says that it has taken the image.
    predecessor = handing.Predecessor(tmp_path / "s.sock")
    for offer in predecessor.offers:
        offer.listener.close()
    assert predecessor.released(["store", "nbd"], 60) is not None
    with predecessor:
        pass
    assert owner.run("put", windows, "a", "-", stdin=b"2").returncode == 0
    assert owner.end()[0] == 0


def test_only_the_same_user_and_root_are_trusted_o135(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with handing.Messages(ours) as messages, theirs:
        messages.require_trusted()
        monkeypatch.setattr(handing, "peer_credentials", lambda _: handing_peer(os.geteuid() + 1))
        with pytest.raises(DeviceError, match=r"user \d+ \[O135\]"):
            messages.require_trusted()
        monkeypatch.setattr(handing, "peer_credentials", lambda _: None)
        with pytest.raises(DeviceError, match="nothing is known"):
            messages.require_trusted()


def handing_peer(user: int) -> object:
    from blobstore.sockets.peers import Peer

    return Peer(1, user, 1)
