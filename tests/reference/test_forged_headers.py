"""Forged header copies: which of them is sound, and what two of them must agree in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from blobstore.container.scan import scan
from blobstore.errors import CorruptStoreError
from formats.devices.device import MemoryDevice
from tests.reference.headers import BLOCK_SIZES, HMAC_SHA256, SHA256
from tests.reference.samples import (
    CORRUPT_STORE,
    FIRST,
    NONE,
    UNSUPPORTED,
    Expected,
    assert_is,
    sample,
)
from tests.support.stores import image

if TYPE_CHECKING:
    from tests.reference.forge import Forged

both_copies = pytest.mark.parametrize("copy", [0, 1])


def change(forged: Forged, copy: int, **fields: Any) -> None:
    """Change one header copy; its check is right after that."""
    for name, value in fields.items():
        setattr(forged.headers[copy], name, value)


def assert_counts_as_damaged(fields: dict[str, Any], otherwise: str = NONE) -> None:
    """One such copy is not minded beside a sound one; without a sound one it says nothing."""
    for copy in (0, 1):
        forged = sample()
        change(forged, copy, **fields)
        assert_is(forged, FIRST)
        forged.headers[1 - copy].damaged = True
        assert_is(forged, otherwise)
        change(forged, 1 - copy, **{"damaged": False, **fields})
        assert_is(forged, otherwise)


# --- One copy (C2, C3, C15, C20, C21) ----------------------------------------------------------


def test_damaged() -> None:
    assert_counts_as_damaged({"damaged": True})


@pytest.mark.parametrize("fields", [{"version": 2}, {"version": 0}, {"algorithm": 2}])
def test_of_another_version(fields: dict[str, Any]) -> None:
    """C15: its check cannot be made, whatever it holds."""
    assert_counts_as_damaged(fields, UNSUPPORTED)
    assert_counts_as_damaged(fields | {"damaged": True}, UNSUPPORTED)


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(31)])
def test_a_key_of_another_length(key: bytes) -> None:
    """C20."""
    assert_counts_as_damaged({"key": key})
    assert_counts_as_damaged({"key": key or b"k", "algorithm": SHA256})


def test_total() -> None:
    """C2, C21: it is a possible one, and in the first copy that of the outer tag."""
    total = len(sample().encode())
    for wrong in (0, 512, total + 1, total - 1, 1 << 63, (1 << 64) - 512):
        assert_counts_as_damaged({"total": wrong})
    forged = sample()
    forged.headers[0].total = total - 512
    assert_is(forged, FIRST)
    forged.headers[0].total, forged.headers[0].outer = None, total - 512
    assert_is(forged, FIRST)
    forged.headers[0].total = total - 512  # in itself that is sound
    assert_is(forged, CORRUPT_STORE)


def test_a_device_that_is_shorter_or_longer() -> None:
    """C2."""
    content = sample().encode()
    assert_is(content + b"\x73" * 1000, FIRST)
    for short in (1, 512, len(content) - 1024):
        assert_is(content[:-short], CORRUPT_STORE)


@both_copies
def test_features(copy: int) -> None:
    """C15: the header decides, which is the newer copy."""
    forged = sample()
    change(forged, copy, sequence=2, compatible=1, read_only_compatible=1 << 63)
    assert_is(forged, FIRST)
    change(forged, copy, incompatible=1 << 40)
    assert_is(forged, UNSUPPORTED)
    change(forged, 1 - copy, sequence=3)
    assert_is(forged, FIRST)


# --- Two copies (C40) --------------------------------------------------------------------------


@both_copies
@pytest.mark.parametrize("newer", [0, 1])
@pytest.mark.parametrize(
    "fields", [{"store_id": bytes(16)}, {"encrypted": True}, {"key": bytes(32)}]
)
def test_copies_of_different_stores(fields: dict[str, Any], newer: int, copy: int) -> None:
    forged = sample()
    change(forged, copy, **fields)
    assert_is(forged, CORRUPT_STORE)
    forged.headers[newer].sequence = 2
    assert_is(forged, CORRUPT_STORE)


@both_copies
def test_another_authentication(copy: int) -> None:
    forged = sample()
    change(forged, copy, algorithm=SHA256, key=b"")
    assert_is(forged, CORRUPT_STORE)


@both_copies
@pytest.mark.parametrize(
    "fields", [{"compatible": 1}, {"read_only_compatible": 1}, {"root": bytes(32)}, {"durable": 0}]
)
def test_copies_of_one_sequence(fields: dict[str, Any], copy: int) -> None:
    forged = sample()
    change(forged, copy, **fields)
    assert_is(forged, CORRUPT_STORE)


@both_copies
def test_padding_may_differ(copy: int) -> None:
    """C3."""
    forged = sample()
    forged.headers[copy].padding = b"what it holds has no meaning"
    assert_is(forged, FIRST)


@both_copies
def test_durable_of_the_older(copy: int) -> None:
    """C34, C40: it was never lowered."""
    for durable in (0, 1, 2):
        forged = sample()
        forged.commit(a={"blob": b"second"})
        forged.close()
        expected: Expected = FIRST | {"a": b"second"}
        change(forged, copy, sequence=1, durable=durable)
        if durable < 2:
            forged.headers[copy].root = bytes(32)  # is not that of the highest number (C48)
        assert_is(forged, expected)
        change(forged, copy, durable=3)
        assert_is(forged, CORRUPT_STORE)


@both_copies
def test_the_newer_copy_is_the_header(copy: int) -> None:
    """C40, C44: its D decides."""
    forged = sample()
    (record,) = forged.commit(a={"blob": b"second"})
    record.stored = b""
    change(forged, copy, durable=2, sequence=2, root=forged.root())
    assert_is(forged, FIRST | {"a": "corrupt"})
    change(forged, copy, damaged=True)
    assert_is(forged, FIRST)


@pytest.mark.parametrize(
    "fields",
    [
        {"store_id": bytes(16)},
        {"total": 2048},
        {"durable": 3, "sequence": 0},
        {"compatible": 1},
    ],
)
def test_copies_that_contradict_each_other_are_named_by_their_place(fields: dict[str, Any]) -> None:
    """C40: a message says what and where."""
    forged = sample()
    change(forged, 1, **fields)
    with pytest.raises(CorruptStoreError, match="C40") as caught:
        scan(MemoryDevice(forged.encode()))
    assert caught.value.offset == 0


def test_a_container_of_nothing_but_its_headers() -> None:
    """C2: two blocks are enough, and both copies count."""
    found = scan(MemoryDevice(image()))
    assert found.total == 1024
    assert None not in found.copies
    assert not found.items


# --- The search for the second copy (C40) ------------------------------------------------------


@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_the_second_copy_is_found(block: int) -> None:
    forged = sample(block=block)
    forged.headers[0].damaged = True
    assert_is(forged, FIRST)


@pytest.mark.parametrize("says", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("at", [512, 1024, 2048])
@pytest.mark.parametrize("damaged", [False, True])
def test_another_copy_inside_the_first_block(at: int, says: int, *, damaged: bool) -> None:
    """It is found if the first is damaged and it says that it lies where it is."""
    forged = sample(SHA256, 4096)
    content = forged.encode()
    other = replace(forged.headers[1], total=1 << 20, block=says, sequence=2)
    found = other.encode(forged.keys, 1, 4096, len(content), at)
    changed = content[:at] + found + content[at + len(found) :]
    if damaged:
        changed = bytes(8) + changed[8:]
    if at + len(found) > 4096:  # it lies on the second copy
        assert_is(changed, (CORRUPT_STORE if at == says else NONE) if damaged else FIRST)
    else:
        assert_is(changed, CORRUPT_STORE if damaged and at == says else FIRST)


def test_a_second_copy_of_another_block_size() -> None:
    """It does not lie where it says, be the first copy sound or not."""
    forged = sample()
    content = forged.encode()
    forged.headers[1].block = 1024
    second = forged.headers[1].encode(forged.keys, 1, 512, len(content))
    content = content[:512] + second[:512] + content[1024:]
    assert_is(content, FIRST)
    assert_is(bytes(512) + content[512:], NONE)


def test_copies_that_changed_places() -> None:
    """C3, C21."""
    forged = sample(HMAC_SHA256, 1024)
    content = forged.encode()
    first, second = (
        header.encode(forged.keys, 1 - copy, 1024, len(content), at=1024 * copy)
        for copy, header in enumerate(forged.headers)
    )
    assert_is(first + content[1024:], FIRST)
    assert_is(content[:1024] + second + content[2048:], FIRST)
    assert_is(first + second + content[2048:], NONE)
