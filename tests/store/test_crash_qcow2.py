"""The same on a qcow2 disk: after any crash the image is sound, and the store old or new."""

from __future__ import annotations

from collections import Counter

import pytest

from blobstore.container.initialise import initialise
from blobstore.store.store import Store
from formats.devices.device import MemoryDevice
from formats.qcow2.check import check
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.opening import open_image
from formats.qcow2.snapshots import create_snapshot
from tests.support.devices import RecordingDevice, crash_states
from tests.support.stores import UNWRITTEN, Contents, contents, spec

SPECS = [spec("tpm", 9000), spec("vpd", 50, b"vpd")]
SIZE = 48 << 10


def look(content: bytes) -> Contents:
    device = MemoryDevice(content)
    report = check(device)
    assert not report.corruptions, report.findings
    with open_image(device) as disk:
        store = Store.on_device(disk, encrypted=False, read_only=True)
        assert not store.verify().problems
        return contents(store)


@pytest.mark.parametrize("cluster_size", [512, 4096])
@pytest.mark.parametrize("snapshot", [False, True])
def test_puts_and_growth(cluster_size: int, snapshot: bool) -> None:
    """With a snapshot, what is put goes to new clusters, and tables change with it."""
    device = RecordingDevice(b"", resizable=True)
    create(device, SIZE, Qcow2Options(cluster_size=cluster_size))
    with open_image(device, read_only=False) as disk:
        initialise(disk, SPECS, encrypted=False, block_size=512)
        disk.flush()
    if snapshot:
        create_snapshot(device, "before")
    before = device.content
    device.log.clear()
    states: list[Contents] = [{"tpm": UNWRITTEN, "vpd": b"vpd"}]
    with open_image(device, read_only=False) as disk:
        store = Store.on_device(disk, encrypted=False)
        for name, blob in (("tpm", b"1" * 9000), ("vpd", b"new"), ("tpm", b"2" * 5000)):
            store.put(name, blob)
            states.append(contents(store))
            device.mark(len(states) - 1)
        store.register("more", 60_000)  # the disk grows for it
        states.append(contents(store))
        device.mark(len(states) - 1)
        store.put("more", b"m" * 60_000)
        states.append(contents(store))
        device.mark(len(states) - 1)
        store.close()
    seen: Counter[str] = Counter()
    for crash in crash_states(before, device.log, exhaustive=2, samples=8):
        last = max((mark for mark in crash.marks if isinstance(mark, int)), default=0)
        found = look(crash.content)
        assert found in states[last : last + 2]
        seen["old" if found == states[last] else "new"] += 1
    assert seen.total() > 200
    assert seen["new"] >= 5
