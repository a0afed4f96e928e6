"""TPMs of an owner are processes that have nothing but their sections (V70 to V82, O100, O101)."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import blobstore
import luks
from blobstore.errors import BlobTooLargeError, CorruptStoreError, UnwrittenBlobError
from blobstore.owner import StoreClient, TpmOptions, Tpms
from blobstore.owner.tpm import tpms
from blobstore.owner.tpm.messages import Lines, Rest, Resting, Resume
from blobstore.owner.tpm.states import StatesClient, StatesServer
from blobstore.owner.tpm.worker import Obedience
from blobstore.vtpm import Behaviour, Channel, TpmVersion
from formats.errors import ArgumentError, DeviceBusyError
from luks import PolicyError
from tests.owner.tpms import INDEX, places, tpms_of, until, workers
from tests.support.cli import blobstore as blobstore_command
from tests.support.foreign import run
from tests.support.owners import OwnerProcess
from tests.support.stores import image as image_of
from tests.support.stores import open_store, spec
from tests.vtpm import commands
from tests.vtpm.support import PERMANENT, VOLATILE, result_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.owner.tpms import Places

pytestmark = pytest.mark.interop


@pytest.fixture
def tpm() -> Iterator[Places]:
    with places() as (place,):
        yield place


@pytest.fixture
def served(image: Path, runtime: Path, tpm: Places) -> Iterator[OwnerProcess]:
    process = OwnerProcess(image, runtime, "--tpm", tpm.text())
    yield process
    if process.process.poll() is None:
        process.end(signal.SIGKILL)


def one_worker(owner: OwnerProcess) -> int:
    found: list[tuple[int, str]] = []

    def is_one() -> bool:
        found[:] = workers(owner.process.pid)
        return len(found) == 1

    until(is_one)
    return found[0][0]


def test_v70_a_tpm_and_other_programs_share_an_image(
    served: OwnerProcess, image: Path, tpm: Places
) -> None:
    tpm.tpm2("nvdefine", hex(INDEX), "-C", "o", "-s", "8")
    tpm.write(b"precious")
    assert served.run("put", image, "a", "-", stdin=b"from a shell").returncode == 0
    assert served.run("get", image, "a").stdout == b"from a shell"
    assert tpm.tpm2("nvread", hex(INDEX), "-C", "o") == b"precious"
    code, said = served.end()
    assert code == 0, said
    assert not tpm.data.exists()
    assert not tpm.ctrl.exists()
    with blobstore.open(image, direct=True) as store:
        assert store.verify().ok
        with tpms_of(store, tpm):
            assert tpm.read() == b"precious"


def test_v70_its_process_has_neither_image_nor_key(tmp_path: Path, runtime: Path) -> None:
    image, key = tmp_path / "secret.img", tmp_path / "key"
    key.write_bytes(b"passphrase of the image")
    migration = tmp_path / "migration"
    migration.write_text("00112233445566778899aabbccddeeff")
    quick = luks.Pbkdf2("sha256", 1000)
    blobstore.create(image, {}, key.read_bytes(), kdf=quick).close()
    with places() as (tpm,):
        text = tpm.text(f"migration-key=file={migration},mode=aes-cbc")
        owner = OwnerProcess(image, runtime, "--key-file", key, "--tpm", text)
        try:
            process = Path("/proc", str(one_worker(owner)))
            opened = {str(one.readlink()) for one in (process / "fd").iterdir()}
            assert not {str(image), str(key), str(migration)} & opened
            memory = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            assert b"passphrase" not in memory
            assert b"0011223344" not in memory
            control = tpm.control()
            assert control.ask(0xF) == struct.pack(">II", 0, 2)  # there is a migration key
            assert control.state(1)[0] == 0
            control.close()
        finally:
            code, said = owner.end()
        assert (code, b"0011" in said) == (0, False)


@contextmanager
def confined(store: blobstore.Store, *names: str) -> Iterator[socket.socket]:
    """Yield the connection that a worker with these sections has."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        StatesServer(ours, store, names).serve()
        ours.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with theirs:
            yield theirs
    finally:
        thread.join(10)
        assert not thread.is_alive()
        ours.close()


def test_o101_a_worker_reaches_its_own_sections_only(store: blobstore.Store) -> None:
    with confined(store, "a", "new") as connection:
        client = StatesClient(connection)
        client.put("a", b"mine")
        assert client.get("a") == b"mine"
        assert client.section("a") == store.section("a")
        with client.transaction() as changes:
            changes.register("new", 10)
            changes.put("new", b"mine too")
        assert "new" in client
        client.delete("new")
        assert "new" not in client
        with pytest.raises(PolicyError, match="O101"):
            client.get("b")
        with pytest.raises(PolicyError, match="O101"):
            client.section("not there")
        with pytest.raises(PolicyError, match="O101"):
            client.put("b", b"x")
        with pytest.raises(PolicyError, match="O101"):
            client.delete("b")
        with pytest.raises(PolicyError, match="O101"), client.transaction() as changes:
            changes.put("a", b"not done")
            changes.register("b", 10)
        with pytest.raises(BlobTooLargeError):
            client.put("a", bytes(5001))
        with pytest.raises(ZeroDivisionError), client.transaction() as changes:
            changes.put("a", b"not done")
            raise ZeroDivisionError
        assert client.get("a") == b"mine"
    with pytest.raises(UnwrittenBlobError):
        store.get("b")


@pytest.mark.parametrize(
    "message",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 0),
        struct.pack(">I", 3) + b"abc",
        struct.pack(">I", 0xFFFFFFFF) + bytes(1000),
        struct.pack(">I", 100) + bytes(50),
        2 * (struct.pack(">I", 20) + msgspec.msgpack.encode({"type": "Get", "name": "a"})),
        struct.pack(">I", 1000) + msgspec.msgpack.encode({"type": "Rename", "name": "a"}),
        struct.pack(">I", 1 << 20) + b"\xdd\x00\x0f\xff\xff" * 200_000,
    ],
)
def test_o101_anything_else_ends_the_connection(store: blobstore.Store, message: bytes) -> None:
    before = store.digest()
    with confined(store, "a") as connection:
        connection.settimeout(30)
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(message)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
    assert store.digest() == before


@given(st.binary(max_size=300))
def test_o101_no_bytes_are_worse_than_the_end_of_the_connection(content: bytes) -> None:
    with open_store(image_of([spec("a", 100)])) as store, confined(store, "a") as connection:
        connection.settimeout(30)
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(struct.pack(">I", len(content)) + content)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)


def test_v71_what_cannot_be_is_refused() -> None:
    ctrl = Channel(path=Path("ctrl"))
    for options, why in (
        ({}, "neither ctrl nor server"),
        ({"data": ctrl}, "not-need-init"),
        ({"ctrl": Channel(connected=3)}, "descriptor"),
        ({"ctrl": Channel(listening=3)}, "descriptor"),
        ({"ctrl": ctrl, "behaviour": Behaviour(incoming=True)}, "as a whole"),
        ({"ctrl": ctrl, "name": "x" * 300}, "name"),
    ):
        with pytest.raises(ValueError, match=why):
            TpmOptions(**options)


def test_v71_two_tpms_have_two_names(store: blobstore.Store) -> None:
    with places() as (tpm,), pytest.raises(ArgumentError, match="two TPMs"):
        Tpms(store, [tpm.options(), tpm.options()])


def test_v73_an_owner_does_not_begin_with_a_damaged_tpm(
    store: blobstore.Store, tpm: Places, image: Path
) -> None:
    store.register(VOLATILE, 70_000)
    header = bytes.fromhex("0201000a0000") + (1016).to_bytes(4, "big")
    store.put(VOLATILE, header + b"\0\1" + (1000).to_bytes(4, "big") + bytes(1000))
    with (
        places("other") as (other,),
        pytest.raises(CorruptStoreError, match="V6"),
        tpms_of(store, other, tpm),
    ):
        pass
    assert not tpm.ctrl.exists()
    assert not other.ctrl.exists()
    assert workers() == []
    store.close()
    done = blobstore_command("serve", image, "--tpm", tpm.text())
    assert (done.returncode, b"[V6]" in done.stderr) == (67, True)
    assert not tpm.ctrl.exists()


def test_v73_two_owners_do_not_share_a_socket(store: blobstore.Store, tpm: Places) -> None:
    with tpms_of(store, tpm):
        with pytest.raises(DeviceBusyError, match="listen"), tpms_of(store, tpm):
            pass
        assert tpm.answers()


def test_v74_a_tpm_that_is_shut_down_is_there_again(served: OwnerProcess, tpm: Places) -> None:
    tpm.define()
    tpm.write(b"precious")
    for _ in range(3):
        before = one_worker(served)
        run("swtpm_ioctl", "--unix", tpm.ctrl, "-s")
        # The one that ends may still have taken a connection that comes at this moment.
        until(lambda: one_worker(served) != before)  # noqa: B023  it is called here
        assert tpm.read() == b"precious"
    code, said = served.end()
    assert code == 0
    assert b"V75" not in said
    assert b"switched off" in said


def test_v75_a_tpm_that_crashes_is_there_again(served: OwnerProcess, tpm: Places) -> None:
    tpm.define()
    tpm.write(b"precious")
    client = tpm.connect()
    os.kill(one_worker(served), signal.SIGKILL)
    assert client.receive() == b""
    client.close()
    assert tpm.read() == b"precious"
    code, said = served.end()
    assert code == 0
    assert b"the process of TPM 'tpm' ended: signal 9 [V75]" in said


def test_v75_a_tpm_that_crashes_again_and_again_is_given_up(
    image: Path, runtime: Path, tpm: Places
) -> None:
    with places("other") as (other,):
        owner = OwnerProcess(image, runtime, "--tpm", tpm.text(), "--tpm", other.text())
        try:
            killed: set[int] = set()
            while tpm.ctrl.exists():
                for number, name in workers(owner.process.pid):
                    if name == "tpm" and number not in killed:
                        os.kill(number, signal.SIGKILL)
                        killed.add(number)
                time.sleep(0.01)
            assert len(killed) == 5
            assert not tpm.data.exists()
            assert other.answers()
            assert owner.run("put", image, "a", "-", stdin=b"on").returncode == 0
        finally:
            code, said = owner.end()
        assert (code, b"given up [V75]" in said) == (0, True)


def test_v76_tpms_end_with_an_owner_that_dies(
    served: OwnerProcess, image: Path, runtime: Path, tpm: Places
) -> None:
    tpm.define()
    tpm.write(b"precious")
    client = tpm.connect()
    worker = one_worker(served)
    served.end(signal.SIGKILL)
    until(lambda: not Path("/proc", str(worker)).exists(), 10)
    assert client.receive() == b""
    client.close()
    again = OwnerProcess(image, runtime, "--tpm", tpm.text())
    try:
        assert tpm.read() == b"precious"
    finally:
        assert again.end()[0] == 0


def test_v76_a_command_that_cannot_be_stored_is_not_answered_with_success(
    store: blobstore.Store, tpm: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tpms_of(store, tpm):
        tpm.define()
        tpm.write(b"precious")

        def fail(*_: object, **__: object) -> None:
            raise DeviceBusyError("it is gone")

        client = tpm.connect()
        with monkeypatch.context() as patched:
            patched.setattr(blobstore.Store, "transaction", fail)
            assert commands.code_of(client.send(commands.nv_write(INDEX, b"too late"))) != 0
        client.close()
        run("swtpm_ioctl", "--unix", tpm.ctrl, "-i")
        client = tpm.connect()
        client.send(commands.STARTUP)
        client.close()
        assert tpm.read() == b"precious"


def test_v77_a_tpm_is_shut_down_with_its_owner(store: blobstore.Store, tpm: Places) -> None:
    with tpms_of(store, tpm):
        tpm.define()
        generation = store.section(PERMANENT).generation
    assert store.section(PERMANENT).generation == generation + 1  # TPM2_Shutdown (V27)
    assert workers() == []
    store.close()


def test_v77_a_tpm_that_does_not_end_is_killed(
    store: blobstore.Store, tpm: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tpms, "_END_TIME", 0.2)
    with tpms_of(store, tpm):
        tpm.define()
        os.kill(workers()[0][0], signal.SIGSTOP)
    assert workers() == []
    with tpms_of(store, tpm):
        tpm.write(b"precious")


def test_v78_a_tpm_rests_between_two_commands(store: blobstore.Store, tpm: Places) -> None:
    with tpms_of(store, tpm) as running:
        tpm.define()
        client = tpm.connect()
        client.send(commands.nv_write(INDEX, b"answered"))
        with running.at_rest():
            at_rest = store.section(PERMANENT).generation
            client.socket.sendall(commands.nv_write(INDEX, b"waiting!"))
            client.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.receive()
            assert store.section(PERMANENT).generation == at_rest
        client.socket.settimeout(60)
        assert commands.code_of(client.receive()) == 0
        client.close()
        assert store.section(PERMANENT).generation == at_rest + 1
        with pytest.raises(ZeroDivisionError), running.at_rest():
            raise ZeroDivisionError
        assert tpm.read() == b"waiting!"


def test_v78_a_tpm_that_does_not_rest_is_an_error_and_goes_on(
    store: blobstore.Store, tpm: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tpms_of(store, tpm) as running:
        tpm.define()
        worker = workers()[0][0]
        os.kill(worker, signal.SIGSTOP)
        with monkeypatch.context() as patched:
            patched.setattr(tpms, "REST_TIME", 0.2)
            for _ in range(2):
                with pytest.raises(DeviceBusyError, match=r"'tpm' .* \[V78\]"), running.at_rest():
                    pass
        os.kill(worker, signal.SIGCONT)
        tpm.write(b"goes on!")
        with running.at_rest():  # what it says of earlier ones is not mistaken for this one
            pass
        assert tpm.read() == b"goes on!"


def test_v78_a_process_whose_command_took_too_long_rests_the_next_time() -> None:
    """A command of more than ten seconds, without the seconds."""

    class Slow:
        tries = 0

        @contextmanager
        def at_rest(self) -> Iterator[None]:
            self.tries += 1
            if self.tries == 1:
                raise DeviceBusyError("the TPM executes a command for too long")
            yield

    ours, theirs = socket.socketpair()
    gone = threading.Event()
    with ours, theirs:
        owner, worker = Lines(ours), Lines(theirs)
        Obedience(worker, Slow(), lambda: None, gone.set).start()  # type: ignore[arg-type]
        owner.send(Rest(1))
        with pytest.raises(TimeoutError):
            owner.receive(Resting, 0.2)
        owner.send(Resume(1))
        for number in (2, 3):
            owner.send(Rest(number))
            assert owner.receive(Resting, 30) == Resting(number)
            owner.send(Resume(number))
        ours.shutdown(socket.SHUT_RDWR)
        assert gone.wait(30)


def test_v78_no_tpm_starts_while_the_image_is_at_rest(store: blobstore.Store, tpm: Places) -> None:
    with tpms_of(store, tpm) as running:
        tpm.define()
        tpm.write(b"precious")
        with running.at_rest():
            before = store.digest()
            os.kill(workers()[0][0], signal.SIGKILL)
            time.sleep(0.5)
            assert workers() == []
            client = tpm.connect()  # is not turned away (V72)
            client.socket.sendall(commands.nv_read(INDEX, 8))
            assert store.digest() == before
        assert commands.data_of(client.receive()) == b"precious"
        client.close()


def test_v81_a_tpm_waits_while_its_image_is_given_up(
    store: blobstore.Store, image: Path, tpm: Places
) -> None:
    with tpms_of(store, tpm) as running:
        tpm.define()
        tpm.write(b"precious")
        client = tpm.connect()
        client.send(commands.pcr_extend(16, bytes(32)))
        extended = client.send(commands.pcr_read(16))
        running.suspend()
        store.release()
        client.socket.sendall(commands.nv_write(INDEX, b"waiting!"))
        with blobstore.open(image, direct=True) as other:
            other.put("a", b"by another")
        client.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.receive()
        store.take_over()
        running.resume()
        client.socket.settimeout(60)
        assert commands.code_of(client.receive()) == 0
        assert client.send(commands.pcr_read(16)) == extended  # it was not switched off
        client.close()
        assert tpm.read() == b"waiting!"
    assert store.get("a") == b"by another"


def test_v82_a_tpm_that_went_on_elsewhere_starts_from_there(
    store: blobstore.Store, image: Path, tpm: Places, caplog: pytest.LogCaptureFixture
) -> None:
    with tpms_of(store, tpm) as running:
        tpm.define()
        tpm.write(b"precious")
        before = workers()
        client = tpm.connect()
        running.suspend()
        store.release()
        with (
            blobstore.open(image, direct=True) as other,
            places() as (there,),
            tpms_of(other, there),
        ):
            there.write(b"went on!")
        store.take_over()
        running.resume()
        assert client.receive() == b""
        client.close()
        assert tpm.read() == b"went on!"
        assert workers() != before
    assert "[V82]" in caplog.text
    assert "[V75]" not in caplog.text


def test_v82_tpms_of_an_image_that_was_given_up_end_at_once(
    store: blobstore.Store, image: Path, tpm: Places
) -> None:
    with tpms_of(store, tpm) as running:
        tpm.define()
        running.suspend()
        store.release()
        with blobstore.open(image, read_only=True, direct=True) as left:
            digest = left.digest()
    assert workers() == []
    assert not tpm.ctrl.exists()
    with blobstore.open(image, read_only=True, direct=True) as other:
        assert other.digest() == digest


def test_v81_tpms_of_an_image_that_is_to_come_wait_for_it(
    store: blobstore.Store, image: Path, tpm: Places
) -> None:
    with tpms_of(store, tpm):
        tpm.define()
        tpm.write(b"precious")
    store.release()
    running = Tpms(store, [tpm.options()])
    running.suspend(waiting=False)
    with running:
        client = tpm.connect()
        client.socket.sendall(commands.nv_read(INDEX, 8))
        with (
            blobstore.open(image, direct=True) as other,
            places() as (there,),
            tpms_of(other, there),
        ):
            there.write(b"went on!")
        store.take_over()
        running.resume()
        assert commands.data_of(client.receive()) == b"went on!"
        client.close()
    assert workers() == []


def test_v81_tpms_that_cannot_all_rest_go_on(
    store: blobstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with places("first", "second") as both, tpms_of(store, *both) as running:
        (stopped,) = [number for number, name in workers() if name == "second"]
        os.kill(stopped, signal.SIGSTOP)
        with monkeypatch.context() as patched:
            patched.setattr(tpms, "REST_TIME", 0.2)
            with pytest.raises(DeviceBusyError, match="'second'"):
                running.suspend()
        os.kill(stopped, signal.SIGCONT)
        assert all(one.answers() for one in both)


def test_o100_clients_read_the_sections_of_a_tpm_and_do_not_change_them(
    served: OwnerProcess, tpm: Places
) -> None:
    tpm.define()
    with StoreClient(served.socket, timeout=60) as client:
        assert client.get(PERMANENT)
        assert client.section(VOLATILE).size is None
        before = client.digest()

        def together() -> None:
            with client.transaction() as changes:
                changes.put("a", b"not done")
                changes.delete(VOLATILE)

        for change in (
            lambda: client.put(PERMANENT, b"x"),
            lambda: client.delete(PERMANENT),
            lambda: client.resize(PERMANENT, 300_000),
            lambda: client.rename(PERMANENT, "old"),
            lambda: client.rename("a", "tpm-save-state"),
            lambda: client.register(VOLATILE, 70_000),
            lambda: client.register("tpm-save-state", 10),
            together,
        ):
            with pytest.raises(DeviceBusyError, match=r"belongs to TPM 'tpm'.* \[O100\]"):
                change()
        assert client.digest() == before
        client.put("a", b"others are free")
    done = subprocess.run(
        [
            *("curl", "-s", "--unix-socket", served.socket, "-T", "/dev/null"),
            *("-w", "%{http_code}", f"http://localhost/v1/sections/{PERMANENT}"),
        ],
        capture_output=True,
        check=True,
    )
    assert done.stdout.endswith(b"503")


def test_a_tpm_12_and_a_tpm_20_have_one_owner(store: blobstore.Store) -> None:
    with places("new", "old") as (new, old):
        options = [new.options(), old.options(version=TpmVersion.TPM_12)]
        with Tpms(store, options):
            assert new.ask(1)[-3:] == b"\x01\xff\xff"
            assert old.ask(1)[-3:] == b"\x01\x7f\xff"
        assert store.section("old-permanent-state").type == "tpm12-permall"


def test_v74_requests_that_end_it_leave_the_control_channel_to_the_next(
    store: blobstore.Store, tpm: Places
) -> None:
    with tpms_of(store, tpm):
        for _ in range(3):
            before = workers()
            assert result_of(tpm.ask(3)) == 0
            until(lambda: workers() != before)  # noqa: B023  it is called here
        assert tpm.answers()
