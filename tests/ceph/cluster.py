"""A Ceph cluster of one monitor and one OSD on the loopback interface, without authentication."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "rbd")

_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:{host}:{port},v1:{host}:{next_port}]
public addr = {host}
cluster addr = {host}
auth cluster required = none
auth service required = none
auth client required = none
run dir = {directory}/run
admin socket = {directory}/run/$name.$pid.asok
log file = {directory}/$name.log
mon cluster log file = {directory}/cluster.log
crash dir = {directory}/crash
keyring = {directory}/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon allow pool delete = true
mon data avail crit = 1
mon data avail warn = 1
paxos propose interval = 0.05
paxos min wait = 0.02
mon tick interval = 1
osd fast fail on connection refused = true
rbd default features = 61
[mon]
mon data = {directory}/mon
mon initial members = a
[osd]
osd data = {directory}/osd
osd objectstore = {store}
memstore device bytes = 1073741824
bluestore block create = true
bluestore block size = 4294967296
bluestore block wal create = false
bluestore block db create = false
osd journal size = 64
osd memory target = 1073741824
osd class load list = *
osd class default list = *
osd client watch timeout = 5
"""


class Cluster:
    """The running cluster. Its OSD can be killed and started again."""

    def __init__(
        self, directory: Path, *, durable: bool, host: str = "127.0.0.1", within: Sequence[str] = ()
    ) -> None:
        """Make and start it.

        Args:
            directory: All of its files.
            durable: Whether the OSD keeps its data when it is killed.
            host: The address that it listens at.
            within: What its commands begin with, if they run in another namespace.
        """
        for program in PROGRAMS:
            if shutil.which(program) is None:
                pytest.fail(f"{program} is missing: see tools/system-packages.list")
        self.directory = directory
        self._within = within
        for name in ("mon", "osd", "run"):
            (directory / name).mkdir(parents=True)
        self.conf = directory / "ceph.conf"
        port = _free_ports()
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        self.conf.write_text(
            _CONFIGURATION.format(
                directory=directory,
                host=host,
                fsid=fsid,
                port=port,
                next_port=port + 1,
                store="bluestore" if durable else "memstore",
            )
        )
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        addresses = f"[v2:{host}:{port},v1:{host}:{port + 1}]"
        monmap = str(directory / "monmap")
        self.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, monmap)
        self.run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self._start("mon", "ceph-mon", "-i", "a", "-f", "--log-to-stderr=false")
        self.run("ceph", "--connect-timeout", "60", "osd", "new", osd)
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.start_osd()
        self.run("ceph", "osd", "pool", "create", "rbd", "8", "8")
        self.run("ceph", "osd", "pool", "application", "enable", "rbd", "rbd")

    def run(self, *command: str) -> bytes:
        done = subprocess.run(
            [*self._within, *command],
            env={**os.environ, "CEPH_CONF": str(self.conf)},
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (command, done.stderr.decode())
        return done.stdout

    def start_osd(self) -> None:
        """Start the OSD, and wait until it serves."""
        end = time.monotonic() + 90
        self._start("osd", "ceph-osd", "-i", "0", "-f")
        while b"1 up" not in self.run("ceph", "osd", "stat"):
            if self._daemons["osd"].poll() is not None:
                # The device of one that was killed is busy until that is gone.
                self._start("osd", "ceph-osd", "-i", "0", "-f")
            assert time.monotonic() < end, "the OSD does not come up"
            time.sleep(0.1)

    def kill_osd(self) -> None:
        self._daemons["osd"].send_signal(signal.SIGKILL)
        self._daemons["osd"].wait(60)

    def create(self, name: str, size: int) -> None:
        """Create an image of so many bytes."""
        self.run("rbd", "create", "--size", f"{size}B", f"rbd/{name}")

    def end(self) -> None:
        for daemon in self._daemons.values():
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(30)

    def _start(self, name: str, *command: str) -> None:
        with (self.directory / f"{name}.err").open("ab") as said:
            self._daemons[name] = subprocess.Popen(
                [*self._within, *command],
                env={**os.environ, "CEPH_CONF": str(self.conf)},
                stdout=subprocess.DEVNULL,
                stderr=said,
            )


@contextmanager
def running_cluster(directory: Path, *, durable: bool, **where: Any) -> Iterator[Cluster]:
    """Run a cluster, in memory or on a file that survives the OSD; ``where`` as in `Cluster`."""
    cluster = Cluster(directory, durable=durable, **where)
    try:
        yield cluster
    finally:
        cluster.end()


@cache
def shared_cluster() -> Cluster:
    """Return a cluster in memory, for all tests of this process; it ends with that."""
    directory = TemporaryDirectory(prefix="blobstore-ceph-")
    cluster = Cluster(Path(directory.name), durable=False)
    atexit.register(directory.cleanup)
    atexit.register(cluster.end)
    return cluster


def _free_ports() -> int:
    """Return a port that is free, as is the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
