"""Before a store answers that there is no blob, it asks the device (P65)."""

from __future__ import annotations

import pytest

from blobstore.errors import BlobNotFoundError, PoisonedStoreError, UnwrittenBlobError
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError
from tests.support.stores import image, open_store, spec

SECTIONS = [spec("never", 700), spec("written", 700, b"content")]


class ShutOut(MemoryDevice):
    """Refuses everything from some moment on, as Ceph does with whom it shut out."""

    is_shut_out = False

    def read_into(self, offset: int, buffer: bytearray | memoryview, /) -> None:
        if self.is_shut_out:
            raise DeviceError("this one is shut out")
        super().read_into(offset, buffer)


@pytest.mark.parametrize("name", ["never", "written", "unknown"])
def test_p65_one_that_was_shut_out_does_not_say_that_there_is_no_blob(name: str) -> None:
    device = ShutOut(image(SECTIONS))
    store = open_store(device)
    device.is_shut_out = True
    with pytest.raises(DeviceError, match="shut out"):
        store.get(name)
    if name != "unknown":
        with pytest.raises(DeviceError, match="shut out"), store.transaction() as changes:
            changes.get(name)


def test_p65_what_is_absent_is_absent() -> None:
    store = open_store(image(SECTIONS, free=20_000))
    with pytest.raises(UnwrittenBlobError):
        store.get("never")
    with pytest.raises(BlobNotFoundError):
        store.get("unknown")
    store.put("written", b"more")
    with pytest.raises(UnwrittenBlobError), store.transaction() as changes:
        changes.get("never")
    with store.transaction() as changes:
        changes.register("new", 100)
        with pytest.raises(UnwrittenBlobError):
            changes.get("new")


@pytest.mark.parametrize("change", ["put", "rename", "delete", "register again", "resize"])
def test_p65_what_another_process_wrote_is_noticed(change: str) -> None:
    """Where nothing shuts out an owner that is taken over from."""
    device = MemoryDevice(image(SECTIONS, free=20_000))
    store = open_store(device)
    other = open_store(device)
    other.put("written", b"more")
    if change == "put":
        other.put("never", b"by another")
    elif change == "rename":
        other.rename("never", "other")
    elif change == "resize":
        other.register("never", 3000)
    else:
        other.delete("never")
        if change == "register again":
            other.register("never", 10)
    with pytest.raises(PoisonedStoreError, match=r"another process .* \[P65\]"):
        store.get("never")
    assert open_store(device, read_only=True).verify().ok


def test_p65_an_interrupted_first_put_is_not_taken_for_one() -> None:
    """A reader leaves it on the device, and knows its generation."""
    device = MemoryDevice(image(SECTIONS))
    store = open_store(device)
    store.put("never", b"\xff" * 700)
    content = bytearray(device.content)
    at = content.find(b"\xff" * 600)
    content[at] ^= 1  # its last sector did not land
    with pytest.raises(UnwrittenBlobError):
        open_store(bytes(content), read_only=True).get("never")
