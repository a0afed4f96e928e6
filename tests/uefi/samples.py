"""Flashes of 128 KiB made by hand, from the rules alone."""

from __future__ import annotations

import struct
import uuid
import zlib
from typing import Final

from tests.foreign.samples import AUTHENTICATED, PLAIN, VOLUME

GLOBAL: Final = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
OTHER: Final = uuid.UUID("6f6c6215-7362-4f74-8e77-6e657254504d")
SIZE, STORE_AT, STORE_SIZE, WORK_AT, SPARE_AT = 0x20000, 72, 0xDFB8, 0xF000, 0x10000
RECORDS_AT: Final = STORE_AT + 28
TIME: Final = struct.pack("<HBBBBB9x", 2026, 11, 30, 6, 30, 0)


def record(
    name: str,
    data: bytes = b"data",
    *,
    state: int = 0x3F,
    guid: uuid.UUID = GLOBAL,
    attributes: int = 7,
    time: bytes = bytes(16),
    authenticated: bool = True,
    name_bytes: bytes | None = None,
    sizes: tuple[int, int] | None = None,
) -> bytes:
    """Return one record and the bytes up to the next."""
    encoded = name.encode("utf-16-le") + b"\0\0" if name_bytes is None else name_bytes
    head = struct.pack("<HBBI", 0x55AA, state, 0, attributes)
    if authenticated:
        head += struct.pack("<Q16sI", 0, time, 0)
    head += struct.pack("<II", *(sizes or (len(encoded), len(data)))) + guid.bytes_le
    whole = head + encoded + data
    return whole + b"\xff" * (-len(whole) % 4)


def headers(*, authenticated: bool = True) -> bytes:
    head = bytearray(bytes(16) + VOLUME.bytes_le)
    head += struct.pack("<Q4sIHHHBB", SIZE, b"_FVH", 0x4FEFF, 72, 0, 0, 0, 2)
    head += struct.pack("<IIII", 32, 4096, 0, 0)
    struct.pack_into("<H", head, 50, -sum(struct.unpack("<36H", head)) & 0xFFFF)
    guid = AUTHENTICATED if authenticated else PLAIN
    return bytes(head) + guid.bytes_le + struct.pack("<I", STORE_SIZE) + b"\x5a\xfe" + bytes(6)


def work_area(writes: bytes = b"", size: int = 0x1000) -> bytes:
    signature = uuid.UUID("9e58292b-7c68-497d-a0ce-6500fd9f1b95").bytes_le
    crc = zlib.crc32(signature + b"\xff" * 8 + struct.pack("<Q", size - 32))
    head = signature + struct.pack("<I", crc) + b"\xfe\xff\xff\xff" + struct.pack("<Q", size - 32)
    return (head + writes).ljust(size, b"\xff")


def write_note(
    *,
    header: int = 0xFC,
    bits: int = 0xFD,
    offset: int = 72,
    length: int = STORE_SIZE,
    distance: int = -SPARE_AT,
    writes: int = 1,
) -> bytes:
    """Return the header of a write and its record; by default the spare area is complete."""
    note = struct.pack("<B3x16s4xQQ", header, OTHER.bytes_le, writes, 0)
    return note + struct.pack("<B7xQQQq", bits, 0, offset, length, distance)


def first_part(records: bytes, *, authenticated: bool = True) -> bytes:
    """Return the flash up to the work area."""
    return (headers(authenticated=authenticated) + records).ljust(WORK_AT, b"\xff")


def flash(
    *records: bytes,
    authenticated: bool = True,
    work: bytes | None = None,
    spare: bytes = b"",
) -> bytes:
    """Return a whole flash with these records."""
    front = first_part(b"".join(records), authenticated=authenticated)
    work = work_area() if work is None else work
    return front + work + spare.ljust(SIZE - SPARE_AT, b"\xff")
