"""A reader of the container, written from `spec/container.md` and `spec/container.asn1` alone.

It shares no code with the package. Comments name the rule that a step follows; ``SPEC:`` marks
a place where the text left something to guess. C25 is a policy and is left to the caller.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat import asn1

from tests.reference.syntax import (
    HEAD,
    Free,
    Header,
    Item,
    Meta,
    Record,
    enumerated,
    frame,
    is_valid_der,
    number,
)

__all__ = ["ContainerError", "Corrupt", "NoContainer", "Unsupported", "is_valid_der", "read"]

UNWRITTEN, CORRUPT = "unwritten", "corrupt"
BLOCK_SIZES = tuple(1 << power for power in range(9, 17))
SHA256, HMAC_SHA256 = 0, 1
BLOB, WINDOW = 0, 1
VOID, UNWRITTEN_STATE, LIVE, TOMBSTONE, IN_PLACE = range(5)


class ContainerError(Exception):
    """The container as a whole is not read."""


class NoContainer(ContainerError):  # noqa: N818  # it need not be an error
    """Neither header copy is sound."""


class Unsupported(ContainerError):  # noqa: N818
    """A later version made this (C15)."""


class Corrupt(ContainerError):  # noqa: N818
    """The store contradicts itself."""


@dataclass(frozen=True)
class Authentication:
    """C20: how things are authenticated in one store."""

    algorithm: int
    key: bytes
    store_id: bytes

    def digest(self, label: bytes, message: bytes) -> bytes:
        """A(label, storeId, message)."""
        message = label + self.store_id + message
        if self.algorithm == HMAC_SHA256:
            return hmac.digest(self.key, message, "sha256")
        return hashlib.sha256(message).digest()

    def checks(self, head: bytes, offset: int, end: int) -> bool:
        """C21; `check` ends at ``end`` and counts as zero in what it covers."""
        blank = head[: end - 32] + bytes(32) + head[end:]
        expected = self.digest(b"blobstore/1 head", offset.to_bytes(8) + blank)
        return hmac.compare_digest(expected, head[end - 32 : end])


@dataclass(frozen=True)
class FoundHeader:
    """A sound header copy."""

    header: Header
    authentication: Authentication
    end: int | None  # of the container by the outer length, which only the first copy has

    @property
    def content(self) -> dict[str, object]:
        """What two copies with one sequence share (C40)."""
        # SPEC: "but for `copy`" must leave out check and padding too: C3 and C21 make them differ.
        own = ("copy", "check", "padding", "authentication")
        fields = {name: value for name, value in vars(self.header).items() if name not in own}
        return fields | {"authentication": self.authentication}


def read_header(content: bytes, offset: int) -> FoundHeader | None:
    """Return the header copy at an offset, 0 or a block size, if it is sound (C21)."""
    head = content[offset : offset + HEAD]
    try:
        outer = (0, 0, None) if offset else frame(head, 0)
        item = Item.parse(head, outer[1])
        header = asn1.decode_der(Header, item.der)
        algorithm = enumerated(header.authentication)
    except ValueError:
        return None
    if (outer[0] != 0x73 and not offset) or item.tag != 0xA0:  # C1
        return None
    if header.identifier != "blobstore" or header.copy != bool(offset):  # C3
        return None
    block = header.block_size
    if block not in BLOCK_SIZES or offset not in (0, block) or item.end != block:  # C3
        return None
    if algorithm not in (SHA256, HMAC_SHA256) or len(header.key) != 32 * algorithm:  # C20
        # SPEC: an unknown authentication is "unsupported" by C15, but without one no check can be
        # made, and a flipped bit would hide the other copy: damaged.
        # SPEC: a key that does not fit (C20, not in C21's list) is a breach of syntax.
        return None
    authentication = Authentication(algorithm, header.key, header.store_id)
    if not authentication.checks(head, offset, item.last[0]):
        return None
    if header.version != 1:
        # SPEC: another version is not sound by the syntax (C21) and unsupported by C15. Here it is
        # unsupported if the check agrees, and damaged if not.
        raise Unsupported(f"C15: version {header.version}")
    return FoundHeader(header, authentication, outer[2])


@dataclass(eq=False)
class FoundRecord:
    """A record with a sound head."""

    offset: int
    length: int
    meta: Meta
    kind: int
    state: int
    signed: bytes  # what its mac covers of its head (C22)
    orphan: bool = False  # C44
    suspect: bool = False  # undecided (C44), or unpublished beside a damaged head (C46)

    def __post_init__(self) -> None:
        self.generation = number(self.meta.generation)
        self.members = number(self.meta.members)
        self.size = number(self.meta.size)

    @property
    def rank(self) -> tuple[int, int]:
        """C42: the newest record of a section ranks highest."""
        counts = 0 if self.state == VOID or self.orphan else self.generation
        # SPEC: "of equals, copy 0" does not decide between two extents; here the first.
        return counts, -self.offset

    @property
    def agreed(self) -> tuple[int, int, int, str]:
        """C12: what both copies have in common."""
        return self.meta.copies, self.kind, self.meta.maximum, self.meta.type


@dataclass(frozen=True)
class FoundFree:
    """A free item with a sound head."""

    length: int
    generation: int
    root: bytes


@dataclass(frozen=True)
class Hidden:
    """An item with a damaged head."""

    length: int


def allowed(text: str, smallest: int, largest: int) -> bool:
    """C9. (SIZE in the module counts characters, C9 bytes: both hold if C9 does.)"""
    controls = (*range(0x20), *range(0x7F, 0xA0))
    return smallest <= len(text.encode()) <= largest and not any(ord(c) in controls for c in text)


# --- Section 5 ---------------------------------------------------------------------------------


class Reader:
    """Reads one container; its methods follow section 5 from top to bottom."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.read_headers()
        self.read_items()
        self.decide()
        self.gather()
        self.check_root()

    def read_headers(self) -> None:
        """C40."""
        first = read_header(self.content, 0)
        # SPEC: the order of the tries matters, as a blob may hold a forged copy; from the smallest
        # up, whatever is tried before the true one lies in block 0.
        tries = [first.header.block_size] if first else BLOCK_SIZES
        copies = (read_header(self.content, offset) for offset in tries)
        second = next((copy for copy in copies if copy), None)
        self.headers = [copy for copy in (first, second) if copy]
        if not self.headers:
            raise NoContainer("no sound header copy")  # SPEC: C40 does not name this case.
        newest = max(self.headers, key=lambda copy: copy.header.sequence)
        self.total = number(self.headers[0].header.total)
        if first and first.end != self.total:
            raise Corrupt("C40: the outer length is not the first copy's total")
        if first and second:
            one, two = first.header, second.header
            if first.authentication != second.authentication or one.encrypted != two.encrypted:
                raise Corrupt("C40: the header copies are of different stores")
            if two.sequence >= one.sequence and one.total != two.total:
                raise Corrupt("C40: the totals differ")
            if two.sequence == one.sequence and first.content != second.content:
                raise Corrupt("C40: header copies of one sequence differ")
        if number(newest.header.incompatible):
            raise Unsupported("C15: an incompatible feature")
        self.block = newest.header.block_size
        self.durable = number(newest.header.durable)
        self.authentication = newest.authentication
        if self.total % self.block or not 2 * self.block <= self.total <= len(self.content):
            raise Corrupt("C2: total length")  # SPEC: C2 does not say what a reader does.

    def read_items(self) -> None:
        """C41."""
        self.items: list[FoundRecord | FoundFree | Hidden] = []
        at = 2 * self.block
        while at < self.total:
            item = self.sound(at) or Hidden(self.hidden_length(at))
            self.items.append(item)
            at += item.length
        self.records = [item for item in self.items if isinstance(item, FoundRecord)]
        self.frees = [item for item in self.items if isinstance(item, FoundFree)]
        self.damaged = any(isinstance(item, Hidden) for item in self.items)

    def sound(self, at: int) -> FoundRecord | FoundFree | None:
        """Return the record or free item at an offset if its head is sound (C21)."""
        try:
            item = Item.parse(self.content[at : at + HEAD])
            if item.end % self.block or at + item.end > self.total:  # C4
                return None
            if item.tag == 0xA1:
                return self.sound_record(at, item)
            if item.tag == 0xA2:
                free = asn1.decode_der(Free, item.der)
                if self.authentication.checks(item.head, at, item.last[0]):
                    return FoundFree(item.end, number(free.generation), free.root)
        except ValueError:
            pass
        return None  # among them a third header copy (C3)

    def sound_record(self, at: int, item: Item) -> FoundRecord | None:
        record = asn1.decode_der(Record, item.der)
        meta, (first, end) = record.meta, item.first
        kind, state = enumerated(meta.kind), enumerated(meta.state)
        if not self.authentication.checks(item.head, at, end):
            return None
        if kind > WINDOW or state > IN_PLACE:
            raise Unsupported(f"C15: kind {kind}, state {state}")
        blank = meta.size == bytes(8) and meta.crc32 == bytes(4)
        # SPEC: nothing says that `copy` is below `copies`; here that is syntax.
        sound = (
            (0 <= meta.copy < meta.copies <= 2 and 0 <= meta.maximum < 1 << 61)
            and item.last[1] == HEAD  # C6
            and (record.align is not None) == (item.last[0] - end in (130, 259))  # C7
            and item.end == -(-(HEAD + meta.maximum) // self.block) * self.block  # C8
            and number(meta.size) <= meta.maximum  # C8
            and (allowed(meta.name, 1, 200) and allowed(meta.type, 0, 32))  # C9
            and (blank or state not in (UNWRITTEN_STATE, TOMBSTONE))  # C11
            and (kind == WINDOW or state != IN_PLACE)  # C11
        )
        signed = item.head[first : end - 4 * 34]  # C22: mac, root, prev and check follow
        return FoundRecord(at, item.end, meta, kind, state, signed) if sound else None

    def hidden_length(self, at: int) -> int:
        """C43: the length of an item with a damaged head."""
        try:
            tag, _, end = frame(self.content[at : at + HEAD], 0)
            # SPEC: "well formed" is not explained; here tag [1] or [2], and a length C4 allows.
            well_formed = tag in (0xA1, 0xA2) and end % self.block == 0 and at + end <= self.total
            if well_formed and (at + end == self.total or self.sound(at + end)):
                return end
        except ValueError:
            pass
        before = self.items[-1] if self.items else None
        fits = before is not None and at + before.length <= self.total  # SPEC: this is not said.
        if isinstance(before, FoundRecord) and fits and before.meta.copy < before.meta.copies - 1:
            return before.length
        starts = range(at + self.block, self.total, self.block)
        return next((start for start in starts if self.sound(start)), self.total) - at

    def verifies(self, record: FoundRecord) -> bool:
        """C22, C23. SPEC: nobody is told to compare `crc32` (C10); here nobody does."""
        start = record.offset + HEAD
        blob = self.content[start : start + record.size] if record.state == LIVE else b""
        mac = self.authentication.digest(b"blobstore/1 blob", record.signed + blob)
        return hmac.compare_digest(mac, record.meta.mac)

    def decide(self) -> None:
        """C44, C46."""
        # SPEC: "in headers" (C30): of both copies; D is the newer one's.
        generations = [number(copy.header.durable) for copy in self.headers]
        generations += [record.generation for record in self.records]
        frees = [free.generation for free in self.frees]
        self.highest = max(generations + frees)  # C30
        bound = max([self.durable, *frees])  # C35
        if self.highest > bound:  # C44
            ours = [record for record in self.records if record.generation == self.highest]
            voids = [record for record in ours if record.state == VOID]
            members = [record for record in ours if record.state != VOID and record.members]
            agreed = {(r.members, r.meta.root, r.meta.prev) for r in members}
            if len(agreed) > 1 or any(len(members) > record.members for record in members):
                raise Corrupt("C44: the members of the newest commit disagree")
            whole = not voids and all(len(members) == r.members for r in members)
            complete = whole and all(self.verifies(record) for record in members)
            alone = len(members) == 1 == members[0].members and members[0].meta.copies == 1
            for record in members if not complete and not alone else []:
                record.orphan, record.suspect = not self.damaged, self.damaged
        for record in self.records:  # C46
            if record.state != VOID and not record.members and record.generation > bound:
                if not self.damaged:
                    raise Corrupt("C46: an unpublished record")
                record.suspect = True

    def gather(self) -> None:
        """C42, C47."""
        self.sections: dict[bytes, list[FoundRecord]] = {}
        self.incomplete: set[bytes] = set()  # sections of which a record is missing
        for index, record in enumerate(self.items):
            if isinstance(record, FoundRecord):
                key = record.meta.section_id
                self.sections.setdefault(key, []).append(record)
                if record.meta.copies == 2 and not self.has_other(index, record):
                    self.incomplete.add(key)
        self.newest = {
            key: max(found, key=lambda r: r.rank) for key, found in self.sections.items()
        }
        self.blobs: dict[str, bytes | str] = {}
        suspect = self.incomplete | {r.meta.section_id for r in self.records if r.suspect}
        # SPEC: a section of void records and orphans only, or whose newest record has generation
        # 0, is not mentioned: corrupt.
        suspect |= {key for key, record in self.newest.items() if not record.rank[0]}
        # SPEC: what a reader does about C13 is not said. Here two sections contradict each other,
        # but one that is corrupt by C43 to C47 yields its name to another.
        for key in sorted(self.newest, key=suspect.__contains__):
            record = self.newest[key]
            blob = CORRUPT if key in suspect else self.blob(record)
            if blob is not None:
                if record.meta.name in self.blobs and key not in suspect:
                    raise Corrupt("C13: two sections of one name")
                self.blobs.setdefault(record.meta.name, blob)

    def has_other(self, index: int, record: FoundRecord) -> bool:
        """Say whether the other copy of an item is beside it."""
        meta = record.meta
        place = index + 1 - 2 * meta.copy
        other = self.items[place] if 0 <= place < len(self.items) else None
        if not isinstance(other, FoundRecord) or other.meta.section_id != meta.section_id:
            return False
        if other.meta.copy == meta.copy or other.length != record.length:
            return False
        if record.agreed != other.agreed:
            raise Corrupt("C12: two copies disagree")  # SPEC: what a reader does is not said.
        return True

    def blob(self, newest: FoundRecord) -> bytes | str | None:
        """C45. SPEC: "a record" must be the newest one: a crash may leave an older copy torn."""
        if not self.verifies(newest):
            return CORRUPT
        if newest.state == TOMBSTONE:  # C47: left over
            return None
        if newest.state == UNWRITTEN_STATE:
            return UNWRITTEN
        if newest.state == IN_PLACE:
            # SPEC: it "is reported as unverified" (C62), what is returned has been verified (C23).
            return CORRUPT
        return self.content[newest.offset + HEAD :][: newest.size]

    def check_root(self) -> None:
        """C48."""
        total = 0
        for record in self.newest.values():  # C24
            # SPEC: whether void records and orphans stand for a section is not said; here not.
            if record.state != TOMBSTONE and record.rank[0]:
                meta = record.meta
                seed = self.authentication.store_id + meta.section_id + meta.generation + meta.mac
                total += number(hashlib.shake_256(b"blobstore/1 memb" + seed).digest(512))
        summed = (total % (1 << 4096)).to_bytes(512)
        self.root = self.authentication.digest(b"blobstore/1 root", summed)
        attested = [(number(c.header.durable) * 2, c.header.root) for c in self.headers]
        attested += [(free.generation * 2, free.root) for free in self.frees]
        for record in self.records:
            if record.state != VOID and not record.orphan:
                attested.append((record.generation * 2, record.meta.root))
            elif record.generation:
                attested.append((record.generation * 2 - 1, record.meta.prev))
        last = max(at for at, _ in attested)
        if not self.damaged and any(root != self.root for at, root in attested if at == last):
            raise Corrupt("C48: the root")


@dataclass(frozen=True)
class Reading:
    """What section 5 says of a container."""

    blobs: dict[str, bytes | str]  # every section's blob, or UNWRITTEN or CORRUPT
    hidden: bool  # a name that is not in ``blobs`` may exist (C43)
    clean: bool  # C49
    fallen_back: bool  # C49
    root: bytes | None  # C48; None if unverified


def read(container: bytes) -> Reading:
    """Return what is in a container."""
    reader = Reader(container)
    return Reading(
        blobs=reader.blobs,
        hidden=reader.damaged,
        clean=reader.durable == reader.highest,
        fallen_back=any(record.orphan for record in reader.records),
        root=None if reader.damaged else reader.root,
    )
