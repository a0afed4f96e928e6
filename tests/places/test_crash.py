"""P15: crashes and failing I/O while an image is made in place, on what stands for an export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import pytest

import blobstore
from blobstore.image.remote import places as remote
from formats.devices.device import MemoryDevice, SharedDevice
from formats.errors import DeviceError, StorageError
from tests.support.devices import FaultyDevice, Operation, RecordingDevice, crash_states

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import BlockDevice, ReadableBuffer, WritableBuffer

PLACE = "nbd://host/export"
SECTIONS = {"a": 300, "b": 100}
SIZE = 96 << 10
#: Volumes are tried in `tests.store.test_crash_encrypted`: the device makes no difference to them.
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "raw": (SIZE, {"encrypted": False}),
    "qcow2": (
        SIZE * 2,
        {
            "encrypted": False,
            "image_format": "qcow2",
            "size": SIZE,
            "qcow2_options": blobstore.Qcow2Options(cluster_size=512),
        },
    ),
}


class Export(SharedDevice):
    """A device of fixed size as an export is one, over any other device."""

    def __init__(self, device: BlockDevice) -> None:
        self.device, self.read_only = device, False

    @property
    def size(self) -> int:
        return self.device.size

    @property
    def block_size(self) -> int:
        return self.device.block_size

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self.device.read_into(offset, buffer)
        if self.observer is not None:
            self.observer(offset, memoryview(buffer))

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self.device.write(offset, data)

    def flush(self) -> None:
        self.device.flush()

    def data_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        yield offset, size

    def lock(self) -> None: ...
    def unlock(self) -> None: ...
    def measure(self) -> None: ...


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    def begin(device: BlockDevice) -> None:
        monkeypatch.setattr(remote, "open_remote", lambda *_, **__: Export(device))

    return begin


def sections() -> list[str] | None:
    """Return the sections of the store that opens, or None if none does."""
    try:
        with blobstore.open(PLACE, read_only=True, direct=True) as store:
            return [one.name for one in store.sections()]
    except StorageError:
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_p15_a_crash_leaves_no_store_or_the_whole_one(kind: str, serve: Any) -> None:
    size, options = KINDS[kind]
    disk = RecordingDevice(size)
    serve(disk)
    blobstore.create(PLACE, SECTIONS, **options).close()
    found = []
    for state in crash_states(disk.before, disk.log, exhaustive=4, samples=6):
        serve(MemoryDevice(state.content))
        found.append(sections())
    assert None in found
    assert [*SECTIONS] in found
    assert all(one in (None, [*SECTIONS]) for one in found)
    assert found[-1] == [*SECTIONS]


@pytest.mark.parametrize("operation", get_args(Operation)[:3])
@pytest.mark.parametrize("kind", KINDS)
def test_p15_failing_requests_are_said_and_leave_no_half_store(
    kind: str, operation: Operation, serve: Any
) -> None:
    size, options = KINDS[kind]
    number = failures = 0
    while True:
        number += 1
        memory = MemoryDevice(size)
        faulty = FaultyDevice(memory, operation, number, persistent=True)
        serve(faulty)
        try:
            blobstore.create(PLACE, SECTIONS, **options).close()
        except DeviceError:
            failures += 1
        serve(memory)
        assert sections() in (None, [*SECTIONS])
        if not faulty.failed:
            break
    assert failures
