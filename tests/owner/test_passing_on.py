"""TPMs that run on when their owner is replaced (V85, V86, O150)."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
import pytest

import blobstore
from blobstore.owner.tpm import messages, states
from tests.owner.guest import build_writer
from tests.owner.machines import Owning, Qemu, make_machine
from tests.owner.test_hand_over import SERVING
from tests.owner.tpms import INDEX, places, tpms_of, until
from tests.support.foreign import run
from tests.support.owners import OwnerProcess
from tests.vtpm import commands

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.owner.tpms import Places

pytestmark = pytest.mark.interop

#: At which a successor is killed: the owner goes on, and so does the TPM.
OF_THE_SUCCESSOR = [
    f"{SERVING}.handing:Predecessor.released:after",
    "blobstore.owner.owner:Owner.take_over:after",
    "blobstore.owner.tpm.process:TpmProcess.adopt:after",
    f"{SERVING}.open_fronts:OpenFronts.start:after",
    f"{SERVING}.handing:Predecessor.taken:before",
]
#: At which an owner is killed that has passed the TPM on: the successor goes on with it.
OF_THE_OWNER_LATE = [
    f"{SERVING}.handing:Messages.send:after:2",
    f"{SERVING}.service:Service._is_taken:after",
    "blobstore.owner.tpm.process:TpmProcess.leave:before",
    f"{SERVING}.open_fronts:OpenFronts.close:after",
]
#: At which one is killed that has not: the TPM ends with it (V76), and begins again.
OF_THE_OWNER_EARLY = [
    f"{SERVING}.service:Service._hand_over:before",
    "blobstore.owner.tpm.process:TpmProcess.pass_on:before",
    "blobstore.owner.tpm.process:TpmProcess.pass_on:after",
]


@pytest.fixture
def tpm() -> Iterator[Places]:
    with places() as (place,):
        yield place


class Writing:
    """A client that writes numbers to an NV index by one connection, and reads each back."""

    def __init__(self, tpm: Places) -> None:
        tpm.define()
        self._client = tpm.connect()
        self._ends = False
        self.acknowledged = 0
        self.longest = 0.0
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        self._thread.join(120)
        self._client.close()
        if self.failure is not None:
            raise self.failure

    def goes_on(self, count: int = 5) -> None:
        """Wait until so many more writes were acknowledged."""
        wanted = self.acknowledged + count
        until(lambda: self.acknowledged >= wanted or self.failure)
        assert self.failure is None, self.failure

    def _run(self) -> None:
        try:
            while not self._ends:
                number = struct.pack(">Q", self.acknowledged + 1)
                began = time.monotonic()
                assert commands.code_of(self._client.send(commands.nv_write(INDEX, number))) == 0
                self.acknowledged += 1
                self.longest = max(self.longest, time.monotonic() - began)
                found = self._client.send(commands.nv_read(INDEX, 8))
                assert commands.data_of(found) == number
        except BaseException as error:  # noqa: BLE001  raised in the thread of the test
            self.failure = error


def worker_of(tpm: Places) -> int:
    """Return the process that listens at a TPM's socket, whoever is its parent."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                words = (place / "cmdline").read_bytes().split(b"\0")
                opened = {str(one.readlink()) for one in (place / "fd").iterdir()}
            except OSError:
                continue
            if b"blobstore.owner.tpm.worker" in words and opened & sockets_at(tpm.data):
                found.append(int(place.name))
    (number,) = found
    return number


def sockets_at(path: Path) -> set[str]:
    lines = Path("/proc/net/unix").read_text().splitlines()
    return {f"socket:[{line.split()[6]}]" for line in lines if line.endswith(f" {path}")}


def is_running(process: int) -> bool:
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def number_in(image: Path) -> int:
    with places() as (tpm,), blobstore.open(image, direct=True) as store:
        assert store.verify().ok
        with tpms_of(store, tpm):
            return int.from_bytes(tpm.read())


def test_v85_a_tpm_runs_on_when_its_owner_is_replaced(
    image: Path, runtime: Path, tpm: Places
) -> None:
    owner = OwnerProcess(image, runtime, "--tpm", tpm.text())
    worker = worker_of(tpm)
    control = tpm.control()
    with Writing(tpm) as writing:
        for number in range(3):
            successor = OwnerProcess(image, runtime, "--tpm", tpm.text(), "--replace")
            assert owner.ended() == 0, owner.said
            writing.goes_on()
            assert worker_of(tpm) == worker
            assert len(control.ask(1)) == 8  # what is connected to the control channel stays so
            # Others use the image meanwhile; its sections stay the TPM's (O100).
            assert successor.run("put", image, "a", "-", stdin=b"x").returncode == 0
            assert successor.run("rm", image, "tpm-permanent-state").returncode == 23
            assert successor.run("backup", image, f"{image}.{number}").returncode == 0
            owner = successor
        count = writing.acknowledged
    control.close()
    tpm.tpm2("nvread", hex(INDEX), "-C", "o")
    code, said = owner.end()
    assert code == 0, said
    assert b"[V75]" not in said
    until(lambda: not is_running(worker))
    assert number_in(image) >= count
    assert 1 <= number_in(Path(f"{image}.2")) <= count


def test_v85_programs_of_the_tpm_notice_nothing(image: Path, runtime: Path, tpm: Places) -> None:
    """tpm2-tools connect for each command."""
    owner = OwnerProcess(image, runtime, "--tpm", tpm.text())
    tpm.tpm2("nvdefine", hex(INDEX), "-C", "o", "-s", "8", "-a", "ownerread|ownerwrite|nt=counter")
    ends, counted = threading.Event(), 0
    failed: list[BaseException] = []

    def count() -> None:
        nonlocal counted
        try:
            while not ends.is_set():
                tpm.tpm2("nvincrement", hex(INDEX), "-C", "o")
                counted += 1
        except BaseException as error:  # noqa: BLE001  raised below
            failed.append(error)

    def after(known: int) -> None:
        until(lambda: counted > known or failed)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(3):
            after(counted)
            successor = OwnerProcess(image, runtime, "--tpm", tpm.text(), "--replace")
            assert owner.ended() == 0, owner.said
            owner = successor
        after(counted)
    finally:
        ends.set()
        thread.join(60)
    assert not failed, failed
    first = int.from_bytes(tpm.tpm2("nvread", hex(INDEX), "-C", "o"))
    tpm.tpm2("nvincrement", hex(INDEX), "-C", "o")
    assert int.from_bytes(tpm.tpm2("nvread", hex(INDEX), "-C", "o")) == first + 1
    assert first >= counted
    assert owner.end()[0] == 0


@pytest.mark.slow
def test_v85_a_machine_keeps_its_tpm_and_its_flash(tmp_path: Path) -> None:
    """QEMU does not connect to a TPM again; to NBD it does, with `reconnect-delay`."""
    with places() as (place,):
        sockets = place.data.parent
        image = make_machine(tmp_path)
        owning = Owning(image, sockets)
        qemu = Qemu(owning, sockets, build_writer(tmp_path), reconnects=True)
        try:
            for _ in range(4):
                known = len([word for word, _ in qemu.said() if word == "N"])
                qemu.wait(
                    lambda: len([word for word, _ in qemu.said() if word == "N"]) > known + 2  # noqa: B023
                )
                successor = Owning(image, sockets, "--replace")
                assert owning.process.ended() == 0, owning.process.said
                owning = successor
            said = dict(qemu.said())
            assert "NFAIL" not in said
            assert "VFAIL" not in said
            last = int(said["N"])
        finally:
            qemu.kill()
            owning.kill()
        again = Qemu(owning := Owning(image, sockets), sockets, tmp_path / "writer.efi")
        try:
            again.wait(lambda: "NV" in dict(again.said()))
            assert int(dict(again.said())["NV"]) >= last
        finally:
            again.kill()
            assert owning.process.end()[0] == 0


@pytest.mark.parametrize("point", OF_THE_SUCCESSOR)
def test_v85_a_successor_that_is_killed_leaves_the_tpm_as_it_is(
    image: Path, runtime: Path, tpm: Places, point: str
) -> None:
    owner = OwnerProcess(image, runtime, "--tpm", tpm.text())
    worker = worker_of(tpm)
    with Writing(tpm) as writing:
        program = ("tests.owner.dying", point)
        dead = OwnerProcess(
            image, runtime, "--tpm", tpm.text(), "--replace", program=program, waits=False
        )
        assert dead.ended() == -signal.SIGKILL
        writing.goes_on()
        # And it can be passed on all the same.
        successor = OwnerProcess(image, runtime, "--tpm", tpm.text(), "--replace")
        assert owner.ended() == 0, owner.said
        writing.goes_on()
        assert worker_of(tpm) == worker
        count = writing.acknowledged
    assert successor.end()[0] == 0
    assert number_in(image) >= count


@pytest.mark.parametrize("point", OF_THE_OWNER_LATE)
def test_v85_an_owner_that_is_killed_after_that_does_not_end_the_tpm(
    image: Path, runtime: Path, tpm: Places, point: str
) -> None:
    program = ("tests.owner.dying", point)
    owner = OwnerProcess(image, runtime, "--tpm", tpm.text(), program=program)
    worker = worker_of(tpm)
    with Writing(tpm) as writing:
        successor = OwnerProcess(image, runtime, "--tpm", tpm.text(), "--replace")
        assert owner.ended() == -signal.SIGKILL
        writing.goes_on()
        assert worker_of(tpm) == worker
        count = writing.acknowledged
    assert successor.end()[0] == 0
    assert number_in(image) >= count


@pytest.mark.parametrize("point", OF_THE_OWNER_EARLY)
def test_v85_an_owner_that_is_killed_before_that_ends_the_tpm(
    image: Path, runtime: Path, tpm: Places, point: str
) -> None:
    program = ("tests.owner.dying", point)
    owner = OwnerProcess(image, runtime, "--tpm", tpm.text(), program=program)
    worker = worker_of(tpm)
    tpm.define()
    tpm.write(b"precious")
    client = tpm.connect()
    successor = OwnerProcess(image, runtime, "--tpm", tpm.text(), "--replace")
    assert owner.ended() == -signal.SIGKILL
    assert client.receive() == b""
    client.close()
    until(lambda: not is_running(worker))
    assert tpm.read() == b"precious"
    assert successor.end()[0] == 0


def test_v85_both_owners_are_killed(image: Path, runtime: Path, tpm: Places) -> None:
    """The TPM ends with the last one that has it."""
    owner = OwnerProcess(image, runtime, "--tpm", tpm.text())
    tpm.define()
    tpm.write(b"precious")
    worker = worker_of(tpm)
    point = f"{SERVING}.open_fronts:OpenFronts.go_on:before"
    dead = OwnerProcess(
        image,
        runtime,
        *("--tpm", tpm.text(), "--replace"),
        program=("tests.owner.dying", point),
        waits=False,
    )
    assert dead.ended() == -signal.SIGKILL
    assert owner.ended() == 0
    until(lambda: not is_running(worker))
    again = OwnerProcess(image, runtime, "--tpm", tpm.text())
    assert tpm.read() == b"precious"
    assert again.end()[0] == 0


def test_v85_a_tpm_that_was_passed_on_ends_and_begins_as_any(
    image: Path, runtime: Path, tpm: Places
) -> None:
    owner = OwnerProcess(image, runtime, "--tpm", tpm.text())
    tpm.define()
    tpm.write(b"precious")
    for how in ("switched off", "killed"):
        successor = OwnerProcess(image, runtime, "--tpm", tpm.text(), "--replace")
        assert owner.ended() == 0, owner.said
        owner = successor
        worker = worker_of(tpm)
        if how == "killed":
            os.kill(worker, signal.SIGKILL)
        else:
            run("swtpm_ioctl", "--unix", tpm.ctrl, "-s")
        until(lambda: not is_running(worker))  # noqa: B023  it is called here
        assert tpm.read() == b"precious"
        assert worker_of(tpm) != worker
        code, said = (0, b"") if how == "switched off" else owner.end()
        assert (code, b"[V75]" in owner.said + said) == (0, how == "killed")


@pytest.mark.parametrize("way", ["another version", "another entry", "no such entry"])
def test_v86_a_tpm_that_the_successor_does_not_know_ends(
    image: Path, runtime: Path, tpm: Places, way: str
) -> None:
    owner = OwnerProcess(image, runtime, "--tpm", tpm.text())
    tpm.define()
    tpm.write(b"precious")
    worker = worker_of(tpm)
    client = tpm.connect()
    module = "tests.owner.older" if way == "another version" else "blobstore"
    text = tpm.text(flags="not-need-init,startup-clear,disable-auto-shutdown")
    entry = {"another version": ("--tpm", tpm.text()), "another entry": ("--tpm", text)}
    successor = OwnerProcess(image, runtime, *entry.get(way, ()), "--replace", program=(module,))
    assert owner.ended() == 0
    until(lambda: not is_running(worker))
    assert client.receive() == b""
    client.close()
    if way != "no such entry":
        assert tpm.read() == b"precious"
    code, said = successor.end()
    assert code == 0
    who = successor.said + said if way == "another entry" else owner.said
    assert (b"is begun again" if way == "another entry" else b"cannot be passed on [O150]") in who
    with blobstore.open(image, direct=True) as store:
        assert store.verify().ok


def test_v86_whoever_changes_a_message_changes_the_version() -> None:
    """If this fails, raise `PROTOCOL`, and put the new digest here."""
    kinds = (messages.ToWorker, messages.ToOwner, states.Get | states.Describe | states.Apply)
    answers = states.Blob | states.Described | states.Applied | states.Refused
    schemas, parts = msgspec.json.schema_components([*kinds, answers])
    parts = {name: {**part, "description": ""} for name, part in parts.items()}
    said = msgspec.json.encode((schemas, parts), order="sorted")
    assert (messages.PROTOCOL, hashlib.sha256(said).hexdigest()[:16]) == (1, "0e2b046755488b27")
