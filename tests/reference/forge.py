"""A writer of containers, right or wrong ones, from `spec/` alone: what histories cannot reach.

It is given every field and keeps only C6 to C8 (where things lie), C20 to C22 and C24.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat import asn1

from tests.reference.headers import HMAC_SHA256, Authentication
from tests.reference.reader import LIVE, TOMBSTONE, UNWRITTEN_STATE, VOID
from tests.reference.syntax import HEAD, Meta, der_length

STORE_ID, KEY = b"forged container", bytes(range(32))


class NoRoomError(Exception):
    """No free item is longer than the extent."""


@asn1.sequence
class _Enumerated:
    value: asn1.TLV


def enumerated(value: int) -> asn1.TLV:
    return asn1.decode_der(_Enumerated, bytes([0x30, 3, 0x0A, 1, value])).value


def tag_and_length(tag: int, total: int) -> bytes:
    """Return the start of a value that has so many bytes with it."""
    for size in range(2, 10):
        coded = bytes([tag]) + der_length(total - size)
        if len(coded) == size:
            return coded
    raise ValueError(f"no DER value has {total} bytes")


def octets(total: int) -> bytes:
    """Return an OCTET STRING of zeros that has so many bytes with tag and length."""
    return tag_and_length(0x04, total).ljust(total, b"\0")


@dataclass(eq=False)
class Copy:
    """A record."""

    section: bytes
    name: str
    maximum: int
    blob: bytes = b""
    state: int = LIVE
    generation: int = 1
    members: int = 0
    root: bytes = bytes(32)
    prev: bytes = bytes(32)
    copy: int = 0
    copies: int = 2
    kind: int = 0
    type: str = ""
    size: int | None = None  # None: as the blob
    crc32: bytes | None = None
    stored: bytes | None = None  # what lies there in place of the blob
    damaged: bool = False
    wrong_mac: bool = False
    signed: bytes = b""  # these two are filled in: meta of C22, and the mac
    mac: bytes = b""

    @property
    def counts(self) -> int:
        """C42, where nothing is an orphan."""
        return 0 if self.state == VOID else self.generation

    def length(self, block: int) -> int:
        return -(-(HEAD + self.maximum) // block) * block  # C8

    def encode(self, keys: Authentication, at: int, block: int) -> bytes:
        length = self.length(block)
        empty = self.state in (UNWRITTEN_STATE, TOMBSTONE)
        size = (0 if empty else len(self.blob)) if self.size is None else self.size
        crc32 = zlib.crc32(b"" if empty else self.blob).to_bytes(4)  # C10, C11
        meta = Meta(
            section_id=self.section,
            copy=self.copy,
            copies=self.copies,
            kind=enumerated(self.kind),
            maximum=self.maximum,
            type=self.type,
            name=self.name,
            state=enumerated(self.state),
            generation=self.generation.to_bytes(8),
            members=self.members.to_bytes(4),
            size=size.to_bytes(8),
            crc32=crc32 if self.crc32 is None else self.crc32,
            mac=bytes(32),
            root=self.root,
            prev=self.prev,
            check=bytes(32),
        )
        coded = asn1.encode_der(meta)
        covered = self.blob[:size] if self.state == LIVE else b""
        self.signed = coded[: -4 * 34]
        self.mac = keys.digest(b"blobstore/1 blob", self.signed + covered)  # C22
        if self.wrong_mac:
            self.mac = self.mac[::-1]
        meta.mac = self.mac
        coded = tag_and_length(0xA1, length) + asn1.encode_der(meta)
        end = len(coded)
        blob = b"\x04" + der_length(length - HEAD)
        room = HEAD - end - len(blob)
        align = b"\x05\0" if room in (130, 259) else b""  # C7
        head = coded + align + octets(room - len(align)) + blob
        head = seal(keys, head, at, end, damaged=self.damaged)
        return head + (self.blob if self.stored is None else self.stored).ljust(
            length - HEAD, b"\0"
        )


def seal(keys: Authentication, head: bytes, at: int, end: int, *, damaged: bool = False) -> bytes:
    """C21: put the check, which ends at ``end``, into a head."""
    check = keys.digest(b"blobstore/1 head", at.to_bytes(8) + head)
    return head[: end - 32] + (bytes(32) if damaged else check) + head[end:]


@dataclass(eq=False)
class Gap:
    """A free item."""

    size: int
    generation: int = 1
    root: bytes = bytes(32)
    damaged: bool = False

    def length(self, block: int) -> int:
        return -(-self.size // block) * block

    def encode(self, keys: Authentication, at: int, block: int) -> bytes:
        length = self.length(block)
        fields = b"\x04\x08" + self.generation.to_bytes(8) + b"\x04\x20" + self.root
        start = tag_and_length(0xA2, length) + fields + b"\x04\x20" + bytes(32)
        item = start + octets(length - len(start))
        return seal(keys, item[:HEAD], at, len(start), damaged=self.damaged) + item[HEAD:]


@dataclass
class HeaderCopy:
    """A header copy."""

    durable: int = 1
    root: bytes = bytes(32)
    sequence: int = 1
    total: int | None = None  # None: the true one
    version: int = 1
    incompatible: int = 0
    read_only_compatible: int = 0
    compatible: int = 0
    store_id: bytes | None = None  # None: the container's
    key: bytes | None = None  # None: the container's
    algorithm: int | None = None  # None: the container's
    block: int | None = None  # None: the container's
    encrypted: bool = False
    damaged: bool = False
    outer: int | None = None  # None: the true one
    padding: bytes = b""

    def encode(
        self, keys: Authentication, copy: int, block: int, total: int, at: int | None = None
    ) -> bytes:
        """Return the copy; ``at`` is for one that does not lie where it should."""
        at = (block if copy else 0) if at is None else at
        block = self.block or block
        key = keys.key if self.key is None else self.key
        algorithm = keys.algorithm if self.algorithm is None else self.algorithm
        store_id = self.store_id or keys.store_id
        keys = replace(keys, algorithm=algorithm, key=key, store_id=store_id)
        start = tag_and_length(0x73, self.outer or total) if copy == 0 else b""
        name = b"blobstore"
        fields = [
            bytes([0x0C, len(name)]) + name,
            bytes([0x02, 1, self.version, 0x02, 1, copy]),
            _integer(block),
            _octet_string(keys.store_id),
            bytes([0x01, 1, 0xFF if self.encrypted else 0, 0x0A, 1, algorithm]),
            _octet_string(keys.key),
            _octet_string(self.incompatible.to_bytes(8)),
            _octet_string(self.read_only_compatible.to_bytes(8)),
            _octet_string(self.compatible.to_bytes(8)),
            _octet_string(self.sequence.to_bytes(8)),
            _octet_string((total if self.total is None else self.total).to_bytes(8)),
            _octet_string(self.durable.to_bytes(8)),
            _octet_string(self.root),
            _octet_string(bytes(32)),
        ]
        start += tag_and_length(0xA0, block - len(start)) + b"".join(fields)
        padding = octets(block - len(start))
        padding = padding[: len(padding) - len(self.padding)] + self.padding
        item = start + padding
        return seal(keys, item[:HEAD], at, len(start), damaged=self.damaged) + item[HEAD:]


def _integer(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1)
    return bytes([0x02, len(content)]) + content


def _octet_string(value: bytes) -> bytes:
    return bytes([0x04, len(value)]) + value


@dataclass
class Forged:
    """A container to be written.

    Commits are C31's, made by `commit`; what landed of them is the caller's to change.
    """

    items: list[Copy | Gap] = field(default_factory=list)
    headers: tuple[HeaderCopy, HeaderCopy] = field(
        default_factory=lambda: (HeaderCopy(), HeaderCopy())
    )
    block: int = 512
    algorithm: int = HMAC_SHA256

    @property
    def keys(self) -> Authentication:
        return Authentication(self.algorithm, KEY if self.algorithm else b"", STORE_ID)

    @property
    def records(self) -> list[Copy]:
        return [item for item in self.items if isinstance(item, Copy)]

    def section(self, name: str, maximum: int, blob: bytes | None = None, **more: Any) -> None:
        """C59: a section as initialising makes it, in generation 1."""
        section = name.encode().ljust(16, b"\0")
        first = Copy(section, name, maximum, blob or b"", **more)
        first.state = UNWRITTEN_STATE if blob is None else LIVE
        self.items.append(first)
        if first.copies == 2:
            void = replace(first, copy=1, state=VOID, generation=0, blob=b"")
            self.items.append(void)

    @property
    def highest(self) -> int:
        """C30."""
        durable = [header.durable for header in self.headers]
        return max(*durable, *(item.generation for item in self.items))

    def extents(self, section: bytes) -> list[list[Copy]]:
        found: list[list[Copy]] = []
        for record in self.records:
            if record.section == section:
                if record.copy == 0:
                    found.append([])
                found[-1].append(record)
        return found

    def newest(self, section: bytes) -> Copy:
        """C42; of a section that has a void extent only, its copy 0."""
        found = [record for record in self.records if record.section == section]
        return max(found, key=lambda record: (record.counts, -record.copy))

    def place(self, section: bytes) -> Copy:
        """Return the record that a commit overwrites: C31, C32, C52, C55."""
        extents = self.extents(section)
        for extent in extents:
            if not any(record.counts for record in extent):
                return extent[0]
        newest = self.newest(section)
        (extent,) = (extent for extent in extents if newest in extent)
        return next((record for record in extent if record is not newest), newest)

    def allot(
        self, name: str, maximum: int, section: bytes | None = None, **more: Any
    ) -> list[Copy]:
        """C52, 1 and 2: a void extent at the end of the first free item that is longer."""
        section = section or name.encode().ljust(16, b"\0")
        void = Copy(section, name, maximum, state=VOID, generation=0, **more)
        extent = [replace(void, copy=copy) for copy in range(void.copies)]
        length = sum(record.length(self.block) for record in extent)
        for index, gap in enumerate(self.items):
            if isinstance(gap, Gap) and gap.length(self.block) > length:
                gap.size = gap.length(self.block) - length
                gap.generation, gap.root = self.highest, self.root()
                self.items[index + 1 : index + 1] = extent
                return extent
        raise NoRoomError

    def create(self, name: str, maximum: int, **more: Any) -> Copy:
        """C52, without the writing of D."""
        self.allot(name, maximum, **more)
        (record,) = self.commit(**{name: {"state": UNWRITTEN_STATE}})
        return record

    def release(self, extent: list[Copy]) -> None:
        """C56, 2."""
        root, start = self.root(), self.items.index(extent[0])
        end = start + len(extent)
        start -= bool(start) and isinstance(self.items[start - 1], Gap)
        end += any(isinstance(item, Gap) for item in self.items[end : end + 1])
        length = sum(item.length(self.block) for item in self.items[start:end])
        self.items[start:end] = [Gap(length, self.highest, root)]

    def commit(self, **changes: dict[str, Any]) -> list[Copy]:
        """C31: one commit that changes these sections; returns the records it wrote.

        A change is the fields of the new record that differ from the newest one's.
        """
        generation = self.highest + 1
        sections = {record.name: record.section for record in self.records}
        written = []
        prev = self.root()
        for name, change in changes.items():
            section = sections[name]
            old = self.place(section)
            fields = {"state": LIVE, "stored": None, **change}
            record = replace(
                self.newest(section),
                copy=old.copy,
                maximum=old.maximum,
                **fields,
            )
            record.generation, record.members = generation, len(changes)
            self.items[self.items.index(old)] = record
            written.append(record)
        root = self.root()
        for record in written:
            record.prev, record.root = prev, root
        return written

    def root(self) -> bytes:
        """C24."""
        self.encode()  # fills in the macs
        total = 0
        for section in {record.section for record in self.records}:
            newest = self.newest(section)
            if newest.counts and newest.state != TOMBSTONE:
                member = self.keys.store_id + newest.signed + newest.mac
                hashed = hashlib.shake_256(b"blobstore/1 memb" + member).digest(512)
                total += int.from_bytes(hashed)
        return self.keys.digest(b"blobstore/1 root", (total % (1 << 4096)).to_bytes(512))

    def attest(self) -> None:
        """Put the present root into both header copies and all that is of generation 1."""
        root = self.root()
        for item in (*self.headers, *(item for item in self.items if item.generation == 1)):
            item.root = root

    def close(self) -> None:
        """C58."""
        root, highest = self.root(), self.highest
        for header in self.headers:
            header.durable, header.root = highest, root
            header.sequence += 1

    def encode(self) -> bytes:
        total = 2 * self.block + sum(item.length(self.block) for item in self.items)
        out = b"".join(
            header.encode(self.keys, copy, self.block, total)
            for copy, header in enumerate(self.headers)
        )
        for item in self.items:
            out += item.encode(self.keys, len(out), self.block)
        return out
