"""`serve --standby` and `serve --take-over`: when the process that has an image is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.image.fencing import file_system, require_fenced, why_unfenced
from blobstore.owner import StoreClient
from formats.errors import DeviceBusyError, UnsupportedError
from luks.errors import PolicyError
from tests.nbd.servers import nbdkit
from tests.nbd.support import Client
from tests.owner.tpms import until
from tests.support.cli import blobstore as run
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from pathlib import Path


class Standby(OwnerProcess):
    """`blobstore serve --standby`, which waits when this is made."""

    def __init__(self, image: Path, runtime: Path, *options: object) -> None:
        super().__init__(image, runtime, *options, "--standby", waits=False)
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()
        assert b"standing by" in self.said, self.said + self.process.stderr.read()


def test_a_standby_serves_when_the_owner_has_died_o178(
    image: Path, runtime: Path, tmp_path: Path
) -> None:
    with blobstore.open(image) as store:
        store.register("w", 8192, "window")
    # The very same sockets: those of the dead are replaced.
    options = ("--nbd", tmp_path / "nbd.sock")
    first = OwnerProcess(image, runtime, *options)
    standby = Standby(image, runtime, *options)
    for number in range(3):
        acknowledged = b"acknowledged %d" % number
        with StoreClient(first.socket) as store:
            store.put("a", acknowledged)
        first.end(signal.SIGKILL)
        standby.wait()
        with StoreClient(standby.socket) as store, Client(tmp_path / "nbd.sock") as device:
            assert store.get("a") == acknowledged
            store.put("a", b"on")
            device.begin("w", structured=False)
        first, standby = standby, Standby(image, runtime, *options)
    # One that ends by itself leaves it, too.
    assert first.end()[0] == 0
    standby.wait()
    with StoreClient(standby.socket) as store:
        assert store.get("a") == b"on"
    assert standby.end()[0] == 0
    with blobstore.open(image) as store:
        assert store.info().clean


def test_a_standby_writes_nothing_and_can_be_ended_o178(image: Path, runtime: Path) -> None:
    before = image.read_bytes()
    with blobstore.open(image, read_only=True):
        standby = Standby(image, runtime)
        time.sleep(1.5)
        assert not list(runtime.glob("*.sock"))
        standby.process.send_signal(signal.SIGTERM)
        assert standby.ended() == 0
    assert image.read_bytes() == before


def test_a_standby_in_the_background_is_ready_when_it_waits_o178(
    image: Path, runtime: Path, tmp_path: Path
) -> None:
    number = tmp_path / "pid"
    with blobstore.open(image, direct=True) as store:
        store.put("a", b"before")
        started = OwnerProcess(
            image, runtime, "--standby", "--daemon", "--pid", f"file={number}", waits=False
        )
        assert started.ended() == 0
        process = int(number.read_text())
    try:
        until(started.socket.exists)
        with StoreClient(started.socket) as client:
            assert client.get("a") == b"before"
    finally:
        os.kill(process, signal.SIGTERM)
    until(lambda: not number.exists())


def test_a_standby_refuses_a_store_that_was_set_back_o179(image: Path, runtime: Path) -> None:
    first = OwnerProcess(image, runtime)
    with StoreClient(first.socket) as store:
        store.put("a", b"old")
        older = image.read_bytes()
        store.put("a", b"new")
        store.put("a", b"newest")
    standby = Standby(image, runtime)
    time.sleep(2.5)  # it looks each second
    standby.process.send_signal(signal.SIGSTOP)
    first.end(signal.SIGKILL)
    with image.open("r+b") as file:
        file.write(older)
    standby.process.send_signal(signal.SIGCONT)
    assert standby.ended() == blobstore.PinMismatchError.exit_code
    assert b"this process knew generation" in standby.said


def test_an_owner_that_is_alive_is_not_taken_from_on_one_machine_o181(
    image: Path, runtime: Path, tmp_path: Path
) -> None:
    first = OwnerProcess(image, runtime)
    second = OwnerProcess(
        image, runtime, "--take-over", "--socket", tmp_path / "2.sock", waits=False
    )
    assert second.ended() == DeviceBusyError.exit_code
    assert b"owns" in second.said
    first.end(signal.SIGKILL)
    second = OwnerProcess(image, runtime, "--take-over")
    with StoreClient(second.socket) as store:
        store.put("a", b"on")
    assert second.end()[0] == 0


def test_where_nothing_fences_a_human_has_to_say_so_p50_p52(tmp_path: Path, runtime: Path) -> None:
    with nbdkit(tmp_path / "n.sock", "memory", "1M") as server:
        place = f"nbd+unix:///?socket={server.socket}"
        assert run("create", place, "--section", "a=100", "--no-encryption").returncode == 0
        waiting = run("serve", place, "--standby", "--unfenced")
        assert waiting.returncode == UnsupportedError("", feature="").exit_code
        assert b"no lock" in waiting.stderr
        refused = run("serve", place, "--take-over")
        assert refused.returncode == PolicyError("").exit_code
        assert b"--unfenced" in refused.stderr
        taken = OwnerProcess(
            place,
            runtime,
            *("--take-over", "--unfenced", "--socket", tmp_path / "s.sock"),
        )
        with StoreClient(tmp_path / "s.sock") as store:
            store.put("a", b"on")
        assert taken.end()[0] == 0


def test_ways_to_begin_exclude_each_other(image: Path) -> None:
    refused = run("serve", image, "--standby", "--take-over")
    assert refused.returncode == 2
    assert b"--standby and --take-over exclude each other" in refused.stderr
    refused = run("serve", image, "--unfenced")
    assert refused.returncode == 2
    assert b"--unfenced is for" in refused.stderr


MOUNTS = """\
23 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw
50 28 {major}:{minor} / /srv rw,relatime shared:30 - {kind} server:/export rw,vers=4.2
"""


@pytest.mark.parametrize(
    ("kind", "fenced"), [("ext4", True), ("nfs4", False), ("cifs", False), ("fuse.sshfs", False)]
)
def test_files_of_other_machines_are_not_fenced_p50(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fenced: bool
) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(major=os.major(device), minor=os.minor(device), kind=kind))
    monkeypatch.setattr("blobstore.image.fencing._MOUNTS", mounts)
    assert file_system(tmp_path) == kind
    assert (why_unfenced(tmp_path) is None) == fenced
    if fenced:
        require_fenced(tmp_path)
    else:
        with pytest.raises(PolicyError, match=kind):
            require_fenced(tmp_path)
        require_fenced(tmp_path, consent=True, waits=True)


def test_the_file_system_of_a_file_is_found_p50(tmp_path: Path) -> None:
    found = subprocess.run(
        ["df", "--output=fstype", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert file_system(tmp_path) == found.stdout.split()[-1]
    assert file_system(tmp_path / "none") is None


def test_each_failing_step_leaves_a_store_that_can_be_taken_later_o179(image: Path) -> None:
    with blobstore.open(image, released=True, direct=True) as waiting:
        with blobstore.open(image, direct=True) as first:
            first.put("a", b"1")
            generation = waiting.follow()
            assert generation == first.info().generation
            with pytest.raises(DeviceBusyError):
                waiting.take_over()
            first.put("a", b"2")
            assert waiting.follow() == generation + 1
        with pytest.raises(UnsupportedError, match="P51"):
            waiting.take_over(fence=True)
        waiting.take_over()
        assert waiting.get("a") == b"2"
        assert waiting.follow() == waiting.info().generation
        waiting.put("a", b"3")
