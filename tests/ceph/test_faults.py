"""Stores on RBD while what is below librbd fails, and while their process dies (P4, P32).

librbd and the messenger of Ceph are the real ones. Connections break at random messages
(``ms inject socket failures``), the OSD is killed at a request and started again, and the client
is killed at each request in turn. Nothing that was acknowledged is lost, and an image that is
opened again is old or new.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
from blobstore.image.remote.rbd_disk import RbdAddress, RbdDisk
from tests.ceph.cluster import running_cluster, shared_cluster
from tests.support.effort import cases
from tests.support.stores import contents, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from blobstore.store.store import Store
    from formats.devices.device import ReadableBuffer
    from tests.ceph.cluster import Cluster
    from tests.support.stores import Contents

SIZE = 4 << 20

pytestmark = [pytest.mark.interop, pytest.mark.slow]

#: What is done to the store, each step acknowledged before the next; as text, for the client that
#: is killed does it as well.
STEPS = (
    'store.put("a", b"1" * 1500)',
    'store.register("new", 600)',
    'store.put("new", b"n" * 600)',
    'store.put("a", b"2" * 70_000)',
    'store.rename("new", "newer")',
    "store.close()",
)


def do(step: str, store: Store) -> None:
    exec(step, {"store": store})


def prepare(address: RbdAddress) -> None:
    """Make the store."""
    with RbdDisk(address, read_only=False) as disk:
        blobstore.initialise(
            disk, [blobstore.SectionSpec("a", 100_000)], encrypted=False, block_size=4096
        )


def states_of(address: RbdAddress) -> list[Contents]:
    """Return what the store is before each step and after the last; it stays as it was."""
    with RbdDisk(address) as disk:
        memory = disk.read(0, SIZE)
    found: list[Contents] = []
    for number in range(len(STEPS) + 1):
        store = open_store(memory)
        for step in STEPS[:number]:
            do(step, store)
        found.append(contents(store) if number < len(STEPS) else found[-1])  # it is closed then
    return found


@pytest.fixture
def address(request: pytest.FixtureRequest) -> RbdAddress:
    cluster = shared_cluster()
    name = request.node.name.replace("[", "-").replace("]", "")
    cluster.create(name, SIZE)
    return RbdAddress(pool="rbd", image=name, conf=str(cluster.conf))


@pytest.mark.parametrize("every", [60, 150])
def test_p32_connections_that_break_all_the_time(
    every: int, address: RbdAddress, tmp_path: Path
) -> None:
    """One in so many uses of a socket fails, at either end of a message or in the middle."""
    prepare(address)
    states = states_of(address)
    with RbdDisk(address) as disk:
        image = disk.read(0, SIZE)
    log, conf = tmp_path / "client.log", tmp_path / "ceph.conf"
    conf.write_text(
        Path(str(address.conf)).read_text()
        + f"\n[client]\nms inject socket failures = {every}\n"
        + f"log file = {log}\nlog to file = true\n"
    )
    rounds = cases(10, 200)
    with RbdDisk(replace(address, conf=str(conf)), read_only=False) as disk:
        for number in range(rounds):
            disk.write(0, image)
            disk.flush()
            store = open_store(disk)
            for step, after in zip(STEPS, states[1:], strict=True):
                do(step, store)
                with RbdDisk(address) as reader:
                    assert contents(open_store(reader, read_only=True)) == after, (number, step)
    failures = log.read_text(errors="replace").count("injecting socket failure")
    print(f"{failures} connections broke in {rounds} rounds")
    assert failures > rounds / 10


CLIENT = textwrap.dedent(
    """
    import os, sys, threading, time
    import blobstore
    from blobstore.image.remote.rbd_disk import RbdAddress, RbdDisk
    from tests.ceph.test_faults import Counting, STEPS, do
    image, conf, last, delay = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])

    def die():
        if delay < 0:
            os._exit(9)  # before it is sent
        threading.Thread(target=lambda: (time.sleep(delay), os._exit(9)), daemon=True).start()

    address = RbdAddress(pool="rbd", image=image, conf=conf)
    with RbdDisk(address, read_only=False) as disk:
        counting = Counting(disk, {last: die})
        store = blobstore.Store.on_device(counting, encrypted=False)
        print("opened", counting.count, flush=True)
        for number, step in enumerate(STEPS, 1):
            do(step, store)
            print(number, counting.count, flush=True)
    """
)


class Counting:
    """A device that counts writes and flushes, and does something before some of them."""

    def __init__(self, disk: RbdDisk, events: Mapping[int, Callable[[], object]]) -> None:
        self._disk = disk
        self._events = events
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def _request(self) -> None:
        self.count += 1
        event = self._events.get(self.count)
        if event is not None:
            event()

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._request()
        self._disk.write(offset, data)

    def flush(self) -> None:
        self._request()
        self._disk.flush()

    def write_durably(self, offset: int, data: ReadableBuffer, /) -> None:
        self.write(offset, data)
        self.flush()


def run_client(address: RbdAddress, last: int, delay: float) -> list[tuple[str, int]]:
    """Run the steps in a process that dies at a request; return what it acknowledged."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, address.image, str(address.conf), str(last), str(delay)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 9), done.stderr
    # The last line may be cut short: what was not said was not acknowledged.
    lines = [line for line in done.stdout.splitlines(keepends=True) if line.endswith("\n")]
    return [(one, int(count)) for one, count in map(str.split, lines)]


def test_p4_a_client_that_is_killed_at_each_request(address: RbdAddress) -> None:
    """Before it is sent, or while it is under way."""
    prepare(address)
    states = states_of(address)
    with RbdDisk(address) as disk:
        image = disk.read(0, SIZE)
    said = run_client(address, 0, 0)
    assert said[-1][0] == str(len(STEPS))
    requests = said[-1][1]
    outcomes = {"old": 0, "new": 0}
    for last in range(1, requests + 1, cases(6, 1)):
        for delay in (-1.0, 0.0, 0.001):
            with RbdDisk(address, read_only=False, lock=False) as disk:
                disk.fence()
                disk.write(0, image)
                disk.flush()
            said = run_client(address, last, delay)
            steps = [int(one) for one, _ in said if one != "opened"]
            acknowledged = steps[-1] if steps else 0
            with RbdDisk(address, read_only=False, lock=False) as disk:
                disk.fence()
                found = contents(open_store(disk))
            allowed = states[acknowledged : acknowledged + 2]
            assert found in allowed, (last, delay, found)
            outcomes["old" if found == allowed[0] else "new"] += 1
    print(f"{requests} requests: {outcomes}")
    assert outcomes["old"]


@pytest.fixture(scope="module")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("ceph"), durable=True) as running:
        yield running


def test_p32_the_osd_is_killed_at_each_request(durable: Cluster) -> None:
    """The request reaches a dead OSD, or one that dies with it; bluestore has the rest."""
    address = RbdAddress(pool="rbd", image="killed", conf=str(durable.conf))
    durable.create("killed", SIZE)
    prepare(address)
    states = states_of(address)
    killed = 0

    def kill_for_a_while(delay: float) -> None:
        nonlocal killed
        killed += 1

        def run() -> None:
            time.sleep(delay)
            durable.kill_osd()
            durable.start_osd()

        thread = threading.Thread(target=run)
        threads.append(thread)
        thread.start()

    every = cases(12, 1)
    threads: list[threading.Thread] = []
    events = {
        number: partial(kill_for_a_while, number % 3 * 0.001) for number in range(2, 100, every)
    }
    with RbdDisk(address, read_only=False) as disk:
        counting: Any = Counting(disk, events)
        store = open_store(counting)
        for step, after in zip(STEPS, states[1:], strict=True):
            do(step, store)
            for thread in threads:
                thread.join()
            if "close" not in step:
                assert contents(store) == after, step
        for thread in threads:
            thread.join()
        # What was acknowledged is on the medium: an OSD that is started again has it.
        durable.kill_osd()
        durable.start_osd()
        assert contents(open_store(counting)) == states[-1]
    print(f"{counting.count} requests, the OSD was killed at {killed}")
    assert killed >= 2
