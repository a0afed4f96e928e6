"""Older blobs are given when they are asked for, and a pinned state is found set back."""

from __future__ import annotations

import pytest

from blobstore.container.open_container import open_container
from blobstore.errors import (
    CorruptBlobError,
    DamagedHeadError,
    NoPreviousBlobError,
    PinMismatchError,
)
from blobstore.store.description import StateDigest
from formats.container.model import HEAD_SIZE
from formats.devices.device import MemoryDevice
from tests.support.devices import RecordingDevice
from tests.support.stores import image, open_store, spec


def test_the_previous_blob_is_given_only_when_asked_for() -> None:
    store = open_store(image([spec("a", 10), spec("p", 10, b"p", copies=1)]))
    for name in ("a", "p"):
        with pytest.raises(NoPreviousBlobError):
            store.get(name, previous=True)
    store.put("a", b"first")
    with pytest.raises(NoPreviousBlobError):
        store.restore("a")  # before it nothing had been written
    store.put("a", b"second")
    assert store.get("a", previous=True) == b"first"
    generation = store.info().generation
    store.restore("a")
    assert (store.get("a"), store.get("a", previous=True)) == (b"first", b"second")
    assert store.info().generation == generation + 1


def test_the_previous_blob_is_what_damage_left() -> None:
    device = MemoryDevice(image([spec("a", 600)]))
    with open_store(device) as store:
        store.put("a", b"first")
        store.put("a", b"second")
    newest = open_container(device).directory.sections["a"].newest.offset
    for at, size, kind in ((HEAD_SIZE, 6, CorruptBlobError), (0, HEAD_SIZE, DamagedHeadError)):
        content = bytearray(device.content)
        content[newest + at : newest + at + size] = bytes(size)
        store = open_store(bytes(content))
        with pytest.raises(kind):
            store.get("a")
        assert store.get("a", previous=True) == b"first"


def test_restore_replaces_a_corrupt_blob() -> None:
    device = MemoryDevice(image([spec("a", 600)]))
    with open_store(device) as store:
        store.put("a", b"first")
        store.put("a", b"second")
    device.content[open_container(device).directory.sections["a"].newest.offset + HEAD_SIZE] ^= 1
    store = open_store(device)
    store.restore("a")
    assert store.get("a") == b"first"
    assert store.verify().ok


def test_a_pinned_state_is_found_set_back() -> None:
    device = MemoryDevice(image([spec("a", 10, b"a")]))
    with open_store(device) as store:
        store.put("a", b"1")
        pin = store.digest()
    assert StateDigest.parse(str(pin)) == pin
    older = bytes(device.content)
    open_store(older, expect_digest=pin, at_least_generation=pin.generation)
    with open_store(device, expect_digest=pin) as store:
        store.put("a", b"2")
        newer = store.digest()
    for content, wanted in ((older, newer), (bytes(device.content), pin)):
        with pytest.raises(PinMismatchError):
            open_store(content, expect_digest=wanted)
    with pytest.raises(PinMismatchError):
        open_store(older, at_least_generation=newer.generation)
    damaged = bytearray(older)
    newest = open_container(MemoryDevice(older)).directory.sections["a"].newest.offset
    damaged[newest + 90] ^= 1  # which its check proves (C67)
    open_store(bytes(damaged), expect_digest=pin, at_least_generation=pin.generation)
    damaged[newest : newest + HEAD_SIZE] = bytes(HEAD_SIZE)
    with pytest.raises(DamagedHeadError):
        open_store(bytes(damaged), allow_damaged=True, expect_digest=pin)
    with pytest.raises(DamagedHeadError):
        open_store(bytes(damaged), allow_damaged=True, at_least_generation=1)


def test_a_torn_put_does_not_change_the_pinned_state() -> None:
    device = RecordingDevice(image([spec("a", 600, b"a")]))
    with open_store(device) as store:
        pin = store.digest()
    before = bytearray(device.content)
    open_store(device).put("a", b"b" * 600)
    write = device.writes[-1]
    before[write.offset : write.offset + 512] = write.data[:512]
    store = open_store(bytes(before), expect_digest=pin)
    assert store.get("a") == b"a"
    assert store.digest().generation == pin.generation + 1


@pytest.mark.parametrize(
    "text", ["", "1", "1:", "x:" + "00" * 32, "1:" + "0" * 63, "-1:" + "00" * 32]
)
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(ValueError, match="GENERATION:ROOT"):
        StateDigest.parse(text)
