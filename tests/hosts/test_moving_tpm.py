"""A vTPM moves from one host to another while tpm2-tools writes to it.

The hosts are network namespaces, each with `blobstore serve`. What they have in common is the
storage, over cables that can be unplugged.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

import blobstore
from tests.ceph.cluster import running_cluster
from tests.hosts.network import HOSTS, STORAGE, two_hosts
from tests.owner.tpms import INDEX, Places, places, until
from tests.support.foreign import program
from tests.support.owners import OwnerProcess, end_owners

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.hosts.network import Network

pytestmark = [pytest.mark.interop, pytest.mark.slow]

SIZE = 8


@pytest.fixture(autouse=True)
def owners_ended() -> Iterator[None]:
    yield
    end_owners()


@pytest.fixture
def network() -> Iterator[Network]:
    with two_hosts() as made:
        yield made


class Host:
    """A host: its namespace, and the vTPM that it serves if it has the image."""

    def __init__(self, network: Network, name: str, directory: Path, tpm: Places) -> None:
        self.within = network.within(name)
        self.directory = directory / name
        self.directory.mkdir()
        self.tpm = tpm

    def serve(self, place: Path | str, *options: object, waits: bool = True) -> OwnerProcess:
        return OwnerProcess(
            place,
            self.directory / "run",
            *("--tpm", self.tpm.text(), "--socket", self.directory / "store.sock"),
            *options,
            within=self.within,
            waits=waits,
        )

    def write(self, number: int) -> bool:
        """Have tpm2-tools write a number; say whether the TPM confirmed it."""
        try:
            done = subprocess.run(
                [*self.within, program("tpm2"), "nvwrite", hex(INDEX), "-C", "o", "-i", "-"],
                input=number.to_bytes(SIZE, "big"),
                env={"TPM2TOOLS_TCTI": f"swtpm:path={self.tpm.data}"},
                capture_output=True,
                timeout=30,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False  # commands wait while the image is released (V82)
        return done.returncode == 0

    def read(self) -> int:
        return int.from_bytes(self.tpm.read(SIZE), "big")


class Writing:
    """tpm2-tools in a loop, in a thread, until a write is not confirmed."""

    def __init__(self, host: Host, first: int = 1) -> None:
        self.confirmed = first - 1
        self._host = host
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        until(lambda: self.confirmed >= first + 5)

    def _run(self) -> None:
        while self._host.write(self.confirmed + 1):
            self.confirmed += 1

    def ended(self) -> int:
        """Return the last number that was confirmed, when no other one will be."""
        self._thread.join(150)
        assert not self._thread.is_alive()
        return self.confirmed


@pytest.fixture
def hosts(network: Network, tmp_path: Path) -> Iterator[list[Host]]:
    # The name of a TPM is that of its state.
    with places() as (first,), places() as (second,):
        tpms = dict(zip(HOSTS, (first, second), strict=True))
        yield [Host(network, name, tmp_path, tpm) for name, tpm in tpms.items()]


def make(place: Path | str) -> None:
    blobstore.create(place, encrypted=False, size=8 << 20).close()


def test_a_tpm_is_handed_over_to_another_host_while_it_is_written_p46(
    network: Network, hosts: list[Host], tmp_path: Path
) -> None:
    """From a file of the first host to a server of NBD, from which the second has it."""
    one, two = hosts
    image, place = tmp_path / "one.img", f"nbd://{STORAGE}/"
    make(image)
    server = subprocess.Popen(
        [
            *network.within("storage"),
            *("nbdkit", "--foreground", "--ipaddr", STORAGE, "memory", "8M"),
        ]
    )
    try:
        first = one.serve(image)
        one.tpm.define(SIZE)
        writing = Writing(one)
        done = first.run(
            *("copy", image, place, "--hand-over", "--json"),
            *("--socket", one.directory / "store.sock"),
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        confirmed = writing.ended()
        second = two.serve(place, "--expect-digest", result["digest"])
        assert two.read() >= confirmed
        assert two.write(confirmed + 1)
        # The first host has it no more, whatever it tries.
        assert not one.write(10**6)
        taken = first.run("owner", "take-over", image, "--socket", one.directory / "store.sock")
        assert taken.returncode == blobstore.MovedImageError.exit_code
        assert two.read() < 10**6
        print(f"{confirmed} writes; devices waited for {result['pause']:.2f} s")
        assert first.end()[0] == 0
        second.end(signal.SIGKILL)
    finally:
        server.kill()  # it would wait for its client
        server.wait(20)


def test_a_host_that_is_cut_off_loses_its_tpm_to_another_o180(
    network: Network, hosts: list[Host], tmp_path: Path
) -> None:
    one, two = hosts
    where = {"host": STORAGE, "within": network.within("storage")}
    with running_cluster(tmp_path / "ceph", durable=False, **where) as cluster:
        place = f"rbd:rbd/tpm:conf={cluster.conf}"
        local = tmp_path / "made.img"
        make(local)
        made = subprocess.run(
            [*network.within("storage"), sys.executable, "-m", "blobstore", "copy", local, place],
            check=False,
        )
        assert made.returncode == 0
        first = one.serve(place)
        standby = two.serve(place, "--standby", waits=False)
        one.tpm.define(SIZE)
        writing = Writing(one)
        network.cut("one", "unplugged")
        began = time.monotonic()
        standby.wait()
        seconds = time.monotonic() - began
        known = two.read()
        assert known >= writing.confirmed
        assert two.write(known + 1)
        network.heal("one", "unplugged")
        # What was on its way when the cable was pulled is refused, and so is all that follows.
        assert writing.ended() <= known
        assert not one.write(10**6)
        assert known < two.read() < 10**6
        print(f"{known} writes; taken over after {seconds:.1f} s")
        first.end(signal.SIGKILL)
        # Back, without a failure: the owner ends, and the first host waits for that.
        again = one.serve(place, "--standby", waits=False)
        writing_there = two.read()
        assert standby.end()[0] == 0
        again.wait()
        assert one.read() >= writing_there
        assert one.write(10**6)
        assert again.end()[0] == 0
