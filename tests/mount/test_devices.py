"""Devices of virtual machines, unmodified, whose state is on a mounted directory.

`swtpm` is the one of the path, so that another version can be tried.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

import blobstore
from formats.state.uefi_vars import decode_variables
from tests.support.effort import cases
from tests.support.foreign import ForeignProgramError, run, swtpm
from tests.support.mounts import MountProcess, wait_for
from tests.support.owners import OwnerProcess
from tests.support.uefi_vars import UefiVars

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.interop]


def numbered(number: int) -> bytes:
    return number.to_bytes(8, "little") * 60


def stored_number(image: Path) -> int:
    """Return what the image has, which is never half a document."""
    with blobstore.open(image, direct=True) as store:
        assert store.verify().ok
        found = {one.name: one.data for one in decode_variables(store.get("uefi.json"))}
    number = int.from_bytes(found["Number"][:8], "little")
    assert found["Number"] == numbered(number)
    return number


def test_qemu_keeps_uefi_variables(mounted: MountProcess, tmp_path: Path) -> None:
    file = mounted.directory / "uefi.json"
    with UefiVars(file, tmp_path) as machine:
        machine.set("Number", numbered(1))
        machine.set("Boot0001", b"entry")
        machine.set("Boot0001", b"")  # deletes it
        assert machine.get("Boot0001") is None
    mounted.end(signal.SIGKILL)
    assert stored_number(mounted.image) == 1
    again = MountProcess(mounted.image, mounted.directory)
    with UefiVars(file, tmp_path) as machine:
        assert machine.get("Number") == numbered(1)
    assert again.end()[0] == 0


def test_m15_kills_of_qemu_and_of_the_mount_leave_whole_variables(
    image: Path, tmp_path: Path
) -> None:
    """QEMU truncates its file before it writes it, so a disk can be left with none."""
    chance = random.Random(17)
    mounted = MountProcess(image, tmp_path / "mnt")
    number = 0
    for case in range(cases(6, 100)):
        machine = UefiVars(mounted.directory / "uefi.json", tmp_path)
        if case:
            assert machine.get("Number") == numbered(number)
        acknowledged = [number]

        def go_on(machine: UefiVars = machine, acknowledged: list[int] = acknowledged) -> None:
            while True:
                try:
                    machine.set("Number", numbered(acknowledged[-1] + 1))
                except (OSError, ValueError):
                    return  # it was killed
                acknowledged.append(acknowledged[-1] + 1)

        machine.set("Number", numbered(number))
        writing = threading.Thread(target=go_on)
        writing.start()
        time.sleep(chance.uniform(0, 0.1))
        kills_mount = case % 3 == 2
        victims = [machine.process, mounted.process] if kills_mount else [machine.process]
        chance.shuffle(victims)
        for victim in victims:
            victim.kill()
        for victim in victims:
            victim.wait(30)
        writing.join(30)
        machine.kill()
        if kills_mount:
            number = stored_number(image)
            mounted = MountProcess(image, tmp_path / "mnt")
        else:
            wait_for(lambda: (mounted.directory / "uefi.json").stat().st_size > 0)  # noqa: B023
            variables = decode_variables((mounted.directory / "uefi.json").read_bytes())
            (found,) = (one.data for one in variables if one.name == "Number")
            number = int.from_bytes(found[:8], "little")
        assert acknowledged[-1] <= number <= acknowledged[-1] + 1
    assert mounted.end()[0] == 0
    assert stored_number(image) == number


def test_m60_qemu_sets_variables_through_a_hand_over(
    image: Path, tmp_path: Path, runtime: Path
) -> None:
    directory = tmp_path / "mnt"
    directory.mkdir()
    owner = OwnerProcess(image, runtime, "--mount", directory)
    with UefiVars(directory / "uefi.json", tmp_path) as machine:
        machine.set("Number", numbered(1))
        successor = OwnerProcess(image, runtime, "--mount", directory, "--replace")
        assert owner.ended() == 0
        machine.set("Number", numbered(2))  # on the descriptor that it had
    assert successor.end()[0] == 0
    assert stored_number(image) == 2


def kill(processes: list[int]) -> None:
    for process in processes:
        os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize(
    ("layout", "backend"), [("swtpm", "dir={}"), ("sections", "backend-uri=file://{}/tpm.nv")]
)
def test_m15_kills_of_swtpm_and_of_the_mount_leave_a_tpm(
    image: Path, tmp_path: Path, layout: str, backend: str
) -> None:
    chance = random.Random(18)
    mounted = MountProcess(image, tmp_path / "mnt", "--layout", layout)
    place = backend.format(mounted.directory)
    write = ("nvwrite", "0x1500001", "-C", "o", "-i", tmp_path / "number")
    known = 0
    for case in range(cases(3, 30)):
        kills_mount = case % 2 == 1
        last = known
        with swtpm(place) as environment:
            victims = [int(environment["SWTPM_PID"]), mounted.process.pid][: kills_mount + 1]
            chance.shuffle(victims)
            killing = threading.Timer(chance.uniform(0.05, 0.3), kill, (victims,))
            run("tpm2", "startup", "-c", environment=environment)
            if not case:
                (tmp_path / "number").write_bytes(b"%8d" % 0)
                define = ("nvdefine", "0x1500001", "-s", "8", "-C", "o")
                run("tpm2", *define, environment=environment)
                run("tpm2", *write, environment=environment)
            else:
                found = run("tpm2", "nvread", "0x1500001", "-C", "o", environment=environment)
                last = int(found)
                assert last in (known, known + 1)
            killing.start()
            for number in range(last + 1, last + 100):
                (tmp_path / "number").write_bytes(b"%8d" % number)
                try:
                    run("tpm2", *write, environment=environment)
                except ForeignProgramError:
                    break
                last = number
            killing.join()
        if kills_mount:
            mounted.end(signal.SIGKILL)
            mounted = MountProcess(image, tmp_path / "mnt", "--layout", layout)
        known = last
    assert mounted.end()[0] == 0
    with blobstore.open(image, direct=True) as store:
        assert store.verify().ok
