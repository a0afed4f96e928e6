"""Images of Ceph RBD as block devices, on a real cluster."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.image.remote.rbd_disk import RbdAddress, RbdDisk
from formats.errors import DeviceBusyError, DeviceError, ReadOnlyError
from tests.ceph.cluster import running_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.ceph.cluster import Cluster

SIZE = 16 << 20

pytestmark = [pytest.mark.interop, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("ceph"), durable=False) as running:
        yield running


@pytest.fixture
def address(cluster: Cluster, request: pytest.FixtureRequest) -> RbdAddress:
    name = request.node.name.replace("[", "-").replace("]", "")
    cluster.create(name, SIZE)
    return RbdAddress(pool="rbd", image=name, conf=str(cluster.conf))


def test_it_is_as_a_piece_of_memory(address: RbdAddress) -> None:
    known = bytearray(SIZE)
    chance = random.Random(1)
    with RbdDisk(address, read_only=False) as disk:
        assert disk.size == SIZE
        for step in range(150):
            offset = chance.randrange(SIZE)
            size = min(chance.choice((0, 1, 511, 4096, 70_000, 6_000_000)), SIZE - offset)
            match chance.choice(("read", "read", "write", "write", "discard", "flush")):
                case "read":
                    assert disk.read(offset, size) == known[offset : offset + size], step
                case "write":
                    data = chance.randbytes(size)
                    disk.write(offset, data)
                    known[offset : offset + size] = data
                case "discard":
                    disk.discard(offset, size)
                    known[offset : offset + size] = bytes(size)
                case _:
                    disk.flush()
        covered = bytearray(SIZE)
        for offset, size in disk.data_ranges(0, SIZE):
            covered[offset : offset + size] = known[offset : offset + size]
        assert covered == known
        disk.resize(SIZE + 4096)
        assert disk.read(SIZE, 4096) == bytes(4096)
        disk.flush()
    with RbdDisk(address) as again:
        assert again.size == SIZE + 4096
        assert again.read(0, SIZE) == known
        with pytest.raises(ReadOnlyError):
            again.write(0, b"x")


def test_the_lock_keeps_others_out(address: RbdAddress) -> None:
    with RbdDisk(address, read_only=False) as first:
        with pytest.raises(DeviceBusyError, match="holds its lock"):
            RbdDisk(address, read_only=False)
        with RbdDisk(address) as reader:
            first.write(0, b"seen")
            assert reader.read(0, 4) == b"seen"
        first.unlock()
        with RbdDisk(address, read_only=False) as second:
            second.write(0, b"2nd!")
            with pytest.raises(DeviceBusyError):
                first.lock()
        first.lock()
        assert first.read(0, 4) == b"2nd!"


def test_a_snapshot_is_what_the_image_was(cluster: Cluster, address: RbdAddress) -> None:
    with RbdDisk(address, read_only=False) as disk:
        disk.write(0, b"before")
        disk.flush()
        cluster.run("rbd", "snap", "create", f"rbd/{address.image}@then")
        disk.write(0, b"after!")
        disk.flush()
        then = RbdAddress(pool="rbd", image=address.image, snapshot="then", conf=str(cluster.conf))
        with RbdDisk(then) as snapshot:
            assert snapshot.read(0, 6) == b"before"
        with pytest.raises(ReadOnlyError):
            RbdDisk(then, read_only=False)


def test_what_is_not_there(cluster: Cluster) -> None:
    conf = str(cluster.conf)
    with pytest.raises(DeviceError, match="cannot open rbd:rbd/none"):
        RbdDisk(RbdAddress(pool="rbd", image="none", conf=conf))
    with pytest.raises(DeviceError, match="cannot open pool 'none'"):
        RbdDisk(RbdAddress(pool="none", image="none", conf=conf))
    with pytest.raises(DeviceError, match="cannot read"):
        RbdDisk(RbdAddress(pool="rbd", image="none", conf="/nonexistent"))


WRITER = textwrap.dedent(
    """
    import sys
    from contextlib import ExitStack
    import blobstore
    from blobstore.image.remote.rbd_disk import RbdAddress, RbdDisk
    address = RbdAddress(pool="rbd", image=sys.argv[1], conf=sys.argv[2])
    resources = ExitStack()
    disk = resources.enter_context(RbdDisk(address, read_only=False))
    store = blobstore.Store.on_device(disk, encrypted=False, resources=resources)
    number = 0
    while True:
        number += 1
        try:
            store.put("a", b"%d" % number)
        except blobstore.StorageError as error:
            print("refused", type(error).__name__, flush=True)
            break
        print(number, flush=True)
    """
)


def refused(cluster: Cluster) -> list[str]:
    """Return whom the cluster refuses, each with the time until when, and forget them."""
    found = cluster.run("ceph", "osd", "blocklist", "ls").decode().strip().splitlines()
    cluster.run("ceph", "osd", "blocklist", "clear")
    return found


def years_of(entry: str) -> float:
    end = datetime.strptime(entry.split()[1], "%Y-%m-%dT%H:%M:%S.%f%z")
    return (end - datetime.now(UTC)).days / 365


def test_p31_an_owner_that_was_killed_is_kept_out_as_well(
    cluster: Cluster, address: RbdAddress
) -> None:
    """librbd breaks such a lock without being asked, and the cluster would forget it in an hour."""
    with RbdDisk(address, read_only=False) as disk:
        blobstore.initialise(disk, [blobstore.SectionSpec("a", 100)], encrypted=False)
    refused(cluster)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, address.image, str(cluster.conf)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(5)][-1]
    writer.kill()
    acknowledged = max([acknowledged, *map(int, writer.communicate()[0].split())])
    began = time.monotonic()
    while True:
        try:
            disk = RbdDisk(address, read_only=False)
        except DeviceBusyError:
            assert time.monotonic() < began + 60
            continue
        break
    with disk, blobstore.Store.on_device(disk, encrypted=False, read_only=True) as store:
        assert int(store.get("a")) in (acknowledged, acknowledged + 1)
    (entry,) = refused(cluster)
    assert years_of(entry) > 9


def test_p6_p31_an_owner_that_is_cut_off_is_shut_out(cluster: Cluster, address: RbdAddress) -> None:
    """The other host is not dead, but cut off: what it writes later is refused (fencing)."""
    with RbdDisk(address, read_only=False) as disk:
        blobstore.initialise(disk, [blobstore.SectionSpec("a", 100)], encrypted=False)
        disk.flush()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, address.image, str(cluster.conf)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    try:
        acknowledged = [int(writer.stdout.readline()) for _ in range(20)][-1]
        began = time.monotonic()
        with ExitStack() as resources:
            disk = resources.enter_context(RbdDisk(address, read_only=False, lock=False))
            disk.fence()
            print(f"taken over after {time.monotonic() - began:.2f} s")
            store = blobstore.Store.on_device(disk, encrypted=False, resources=resources.pop_all())
        with store:
            rest = writer.stdout.read().splitlines()
            assert rest[-1].startswith("refused"), rest[-5:]
            acknowledged = max([acknowledged, *(int(line) for line in rest[:-1])])
            assert int(store.get("a")) >= acknowledged
            store.put("a", b"mine")
        writer.wait(60)
        (entry,) = refused(cluster)
        assert years_of(entry) > 9
    finally:
        writer.kill()
        writer.communicate()
    with ExitStack() as resources:
        disk = resources.enter_context(RbdDisk(address))
        store = blobstore.Store.on_device(
            disk, encrypted=False, read_only=True, resources=resources.pop_all()
        )
        with store:
            assert store.get("a") == b"mine"
