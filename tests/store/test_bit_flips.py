"""One flipped bit anywhere in an image is harmless or reported (C43, C45, C48, C21).

Every byte of a container, of an image in the clear and of one inside LUKS, closed
and killed; every bit of every head; and the LUKS header around it. None changes
what `get` returns without an error, but for one case that nothing can tell: in a
store that was killed, damage to the newest commit's blob looks like a torn put.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import luks
from blobstore.container.authentication import Authenticator
from blobstore.container.initialise import container_size, initialise
from blobstore.container.scan import scan
from blobstore.errors import DamagedHeadError
from blobstore.store.store import Store
from formats.container.decoder import decode_header, decode_item, locate_check
from formats.container.model import HEAD_SIZE
from formats.devices.device import MemoryDevice
from formats.errors import FormatError, StorageError, UnsupportedError
from tests.luks.support import PASSPHRASE, PBKDF2, SMALL
from tests.support.stores import CORRUPT, contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import BlockDevice

SPECS = [spec("a", 700), spec("p", 300, copies=1)]
FREE = 1024
BLOBS = {"a": b"A" * 700, "p": b"P" * 200}
BEFORE = {"a": b"before", "p": b"before"}

#: What regions are called in which a flip may go unnoticed by `get` and `verify`.
UNUSED = ("free", "room to the worst case and the block's end", "the blob before")


def write_history(device: BlockDevice, *, encrypted: bool, close: bool) -> None:
    """Put every blob twice, the one of two copies last."""
    store = Store.on_device(device, encrypted=encrypted)
    for blobs in (BEFORE, BLOBS):
        for name in ("p", "a"):
            store.put(name, blobs[name])
    if close:
        store.close()


def in_the_clear(*, close: bool) -> MemoryDevice:
    device = MemoryDevice(image(SPECS, free=FREE, encrypted=False))
    write_history(device, encrypted=False, close=close)
    return device


def in_luks(*, close: bool) -> MemoryDevice:
    device = MemoryDevice(0)
    payload = container_size(SPECS, block_size=512, free=FREE)
    with luks.format(
        device,
        PASSPHRASE,
        kdf=PBKDF2,
        sector_size=512,
        size=payload,
        **SMALL,
    ) as volume:
        initialise(volume, SPECS, encrypted=True, block_size=512)
        write_history(volume, encrypted=True, close=close)
    return device


@contextmanager
def flipped(device: MemoryDevice, position: int, mask: int) -> Iterator[None]:
    device.content[position] ^= mask
    try:
        yield
    finally:
        device.content[position] ^= mask


def outcome(device: BlockDevice, *, encrypted: bool, close: bool) -> str:
    """Open and read everything; fail if anything is answered with other data."""
    try:
        store = Store.on_device(device, encrypted=encrypted, read_only=True)
    except StorageError:
        return "refused"
    found = contents(store)
    before = False
    for name, blob in BLOBS.items():
        if name not in found:
            # Its only head is damaged: that must not read as absence.
            with pytest.raises(DamagedHeadError):
                store.get(name)
        elif found[name] not in (blob, CORRUPT):
            # The last put of a killed store, by a flip that made it look torn.
            assert not close
            assert (name, found[name]) == ("a", BEFORE["a"])
            before = True
    if before:
        return "looks torn"
    if store.info().damaged_heads:
        return "damaged head"
    if store.info().mended_heads:
        assert found == BLOBS or not close
        return "mended"
    if CORRUPT in found.values():
        return "corrupt blob"
    return "same" if store.verify().ok else "damaged header"


@pytest.mark.parametrize("close", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["in the clear", "in LUKS"])
def test_every_byte_of_a_container(encrypted: bool, close: bool) -> None:
    generator = random.Random(20261120)
    device = in_luks(close=close) if encrypted else in_the_clear(close=close)
    payload = luks.open(device, PASSPHRASE) if encrypted else device
    start = len(device.content) - payload.size
    # Only the sector with the flip has to be decrypted again.
    plain = MemoryDevice(payload.read(0, payload.size))
    regions = Store.on_device(plain, encrypted=encrypted, read_only=True).regions()
    counts: Counter[str] = Counter()
    for region in regions:
        # What a head said is searched for (C67): every fifth byte will do.
        step = 5 if "head" in region.use else 1
        for position in range(region.offset, region.offset + region.size, step):
            sector = slice(position // 512 * 512, position // 512 * 512 + 512)
            sound = plain.content[sector]
            with flipped(device, start + position, 1 << generator.randrange(8)):
                plain.content[sector] = payload.read(sector.start, 512)
            result = outcome(plain, encrypted=encrypted, close=close)
            plain.content[sector] = sound
            counts[result] += 1
            if result == "same":
                assert region.use.endswith(UNUSED), region
    assert payload.size == 6144
    assert counts.total() >= 3800
    assert counts["same"] >= 1500
    # In the clear each bit is found; in a volume it garbles 16 bytes.
    assert counts["mended"] >= 3 * HEAD_SIZE // 5 + HEAD_SIZE // 2
    assert encrypted or not counts["damaged head"]
    assert counts["mended"] + counts["damaged head"] >= 3 * HEAD_SIZE // 5 + HEAD_SIZE
    assert counts["damaged header"] >= 2 * HEAD_SIZE // 5
    assert counts["corrupt blob"] >= (900 if close else 200)
    assert counts["looks torn"] >= (0 if close else 700)
    assert set(counts) <= {
        "same",
        "mended",
        "damaged head",
        "damaged header",
        "corrupt blob",
        "looks torn",
    }


def test_c21_every_bit_of_every_head() -> None:
    """Flipped, none of them leaves a head sound."""
    content = bytes(in_the_clear(close=False).content)
    found = scan(MemoryDevice(content))
    authenticator = Authenticator.of(found.header)
    bits = 0
    for offset in (0, 512, *(offset for offset, _ in found.items)):
        head = int.from_bytes(content[offset : offset + HEAD_SIZE], "big")
        for bit in range(8 * HEAD_SIZE):
            flipped_head = (head ^ 1 << bit).to_bytes(HEAD_SIZE, "big")
            assert not _is_sound(authenticator, offset, flipped_head)
            bits += 1
    assert bits == 6 * 4096


def _is_sound(authenticator: Authenticator, offset: int, head: bytes) -> bool:
    try:
        if offset >= 1024:
            decode_item(head, 512)
            return authenticator.is_sound(offset, head, locate_check(head))
        decoded = decode_header(head, offset // 512)
        return Authenticator.of(decoded.header).is_sound(offset, head, decoded.check_start)
    except (FormatError, UnsupportedError):
        return False


def test_the_luks_header_around_it() -> None:
    """Both copies of the header byte by byte where they say anything, the rest sampled."""
    generator = random.Random(20261120)
    device = in_luks(close=True)
    header = luks.load_header(device)
    size = header.metadata_size
    area = header.keyslots[0].area
    text = bytes(device.content[4096:size]).find(b"\0\0\0\0")
    positions = {
        "header": [
            copy * size + position
            for copy in (0, 1)
            for position in (*range(0, 480, 2), *range(4096, 4096 + text, 4))
        ],
        # The field has room for 64 bytes of checksum; SHA-256 has 32.
        "checksum's rest": [
            copy * size + position for copy in (0, 1) for position in range(480, 512)
        ],
        "header padding": [
            copy * size + generator.randrange(start, stop)
            for copy in (0, 1)
            for start, stop in ((512, 4096), (4096 + text, size))
            for _ in range(16)
        ],
        "key material": [area.offset + generator.randrange(32 * 4000) for _ in range(32)],
        "unused": [
            generator.randrange(area.offset + 32 * 4000, header.data_offset) for _ in range(32)
        ],
    }
    counts: Counter[tuple[str, str]] = Counter()
    for where, chosen in positions.items():
        for position in chosen:
            with flipped(device, position, 1 << generator.randrange(8)):
                counts[where, _luks_outcome(device)] += 1
    for where in ("header", "header padding"):
        assert {result for place, result in counts if place == where} == {"reported"}, counts
    assert counts["header", "reported"] > 700
    assert counts["key material", "no keyslot"] == 32
    assert counts["unused", "same"] == 32
    assert counts["checksum's rest", "same"] == 64


def _luks_outcome(device: MemoryDevice) -> str:
    try:
        with luks.open(device, PASSPHRASE) as volume:
            store = Store.on_device(volume, encrypted=True, read_only=True)
            assert contents(store) == BLOBS
            return "same" if volume.header.stale_copy is None else "reported"
    except luks.NoKeyslotMatchError:
        return "no keyslot"
    except StorageError:
        return "refused"


def test_what_looks_torn_is_told_from_damage_by_closing() -> None:
    """The limit of the sweep: the same flip, before and after D was written (section 7)."""
    for close, expected in ((True, CORRUPT), (False, BEFORE["a"])):
        device = in_the_clear(close=close)
        newest = open_store(device, read_only=True)
        region = next(
            r for r in newest.regions() if r.use.endswith("the blob") and r.section == "a"
        )
        with flipped(device, region.offset + 5, 4):
            assert contents(open_store(bytes(device.content), read_only=True))["a"] == expected
