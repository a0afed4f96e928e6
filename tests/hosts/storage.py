"""What the storage serves to the hosts: an NBD server, or a Ceph cluster."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.ceph.cluster import running_cluster
from tests.hosts.network import STORAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.ceph.cluster import Cluster
    from tests.hosts.network import Network

#: Kinds of storage: two NBD servers, and a cluster on files.
PLACES = ("nbdkit", "qemu-nbd", "ceph")
SIZE = 1 << 20
_PORT = 10809


class Storage(Protocol):
    """Where a store lies that both hosts reach.

    Attributes:
        place: Its name.
    """

    place: str

    def restart(self) -> None:
        """Kill the server as a power cut does, and start it again."""


class NbdStorage:
    """An export of nbdkit or qemu-nbd."""

    def __init__(self, network: Network, program: str, image: Path) -> None:
        if shutil.which(program) is None:
            pytest.fail(f"{program} is missing: see tools/system-packages.list")
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(bytes(SIZE))
        options = {
            "nbdkit": ("--foreground", "--ipaddr", STORAGE, "--port", str(_PORT), "file"),
            "qemu-nbd": (
                *("--bind", STORAGE, "--port", str(_PORT), "--persistent", "--shared=0"),
                "--format=raw",
            ),
        }[program]
        self._command = [*network.within("storage"), program, *options, str(image)]
        self.place = f"nbd://{STORAGE}/"
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 60
        while not self._listens():
            assert self._process.poll() is None, f"{self._command} ended"
            assert time.monotonic() < end, f"{self._command} does not listen"
            time.sleep(0.02)

    def _listens(self) -> bool:
        # The list of sockets of the namespace in which the process is.
        sockets = Path(f"/proc/{self._process.pid}/net/tcp").read_text().splitlines()
        return any(
            line.split()[1].endswith(f":{_PORT:04X}") and line.split()[3] == "0A"
            for line in sockets[1:]
        )

    def restart(self) -> None:
        self.end()
        time.sleep(0.3)
        self._start()

    def end(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(20)


class CephStorage:
    """An image of a cluster on files."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        cluster.create("image", SIZE)
        self.place = f"rbd:rbd/image:conf={cluster.conf}"

    def restart(self) -> None:
        self._cluster.kill_osd()
        self._cluster.start_osd()


@contextmanager
def serving(kind: str, network: Network, directory: Path) -> Iterator[Storage]:
    """Serve a device of one of `PLACES` to both hosts."""
    if kind == "ceph":
        within = network.within("storage")
        with running_cluster(directory, durable=True, host=STORAGE, within=within) as cluster:
            yield CephStorage(cluster)
        return
    storage = NbdStorage(network, kind, directory / f"{kind}.img")
    try:
        yield storage
    finally:
        storage.end()
