"""A reader of the container, written from `spec/container.md` and `spec/container.asn1` alone.

It shares no code with the package. Comments name the rule that a step follows; ``SPEC:`` marks
a place where the text left something to guess. C25 is a policy and is left to the caller.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat import asn1

from tests.reference.headers import Corrupt, Unsupported, candidates, read_headers
from tests.reference.syntax import HEAD, Free, Item, Meta, Record, enumerated, frame, number

UNWRITTEN, CORRUPT, UNVERIFIED = "unwritten", "corrupt", "unverified"
BLOB, WINDOW = 0, 1
VOID, UNWRITTEN_STATE, LIVE, TOMBSTONE, IN_PLACE = range(5)


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
    undecided: bool = False  # C44

    def __post_init__(self) -> None:
        self.generation = number(self.meta.generation)
        self.members = number(self.meta.members)
        self.size = number(self.meta.size)

    @property
    def counts(self) -> int:
        """C42."""
        return 0 if self.state == VOID or self.orphan else self.generation

    @property
    def agreed(self) -> tuple[int, int, int, str]:
        """C12: what both copies have in common."""
        return self.meta.copies, self.kind, self.meta.maximum, self.meta.type


@dataclass(frozen=True)
class FoundFree:
    """A free item with a sound head."""

    offset: int
    length: int
    generation: int
    root: bytes


@dataclass(frozen=True)
class Hidden:
    """An item with a damaged head."""

    offset: int
    length: int


@dataclass(frozen=True)
class Extent:
    """One record, or two that lie beside each other."""

    records: tuple[FoundRecord, ...]

    @property
    def incomplete(self) -> bool:
        return len(self.records) < self.records[0].meta.copies

    @property
    def undecided(self) -> bool:
        return any(record.undecided for record in self.records)

    @property
    def newest(self) -> FoundRecord:
        """C42; of equals, `max` takes the first: copy 0."""
        return max(self.records, key=lambda record: record.counts)


def allowed(text: str, smallest: int, largest: int) -> bool:
    """C9. (SIZE in the module counts characters, C9 bytes: both hold if C9 does.)"""
    controls = (*range(0x20), *range(0x7F, 0xA0))
    return smallest <= len(text.encode()) <= largest and not any(ord(c) in controls for c in text)


def check_end(head: bytes) -> int | None:
    """Return where `check` of a record or free item ends, by the framing alone."""
    try:
        tag, start, _ = frame(head, 0)
        if tag == 0xA2:
            return start + 10 + 34 + 34
        if tag != 0xA1:
            return None
        tag, start, end = frame(head, start)
    except ValueError:
        return None
    return end if tag == 0x30 and start + 34 <= end <= HEAD else None


# --- Section 5 ---------------------------------------------------------------------------------


class Reader:
    """Reads one container; its methods follow section 5 from top to bottom."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.mended: list[int] = []
        self.read_header()
        self.read_items()
        self.decide()
        self.gather()
        if self.overwriting and self.root != self.overwriting.meta.prev:  # C44, its exception
            self.overwriting.orphan = False
            self.gather()
        self.check_root()
        self.name()

    def read_header(self) -> None:
        """C40."""
        self.headers = read_headers(bytes(self.content))
        newest = max(self.headers, key=lambda copy: copy.sequence)
        self.block = newest.header.block_size
        self.total, self.durable = self.headers[0].total, newest.durable
        self.authentication = newest.authentication

    def read_items(self) -> None:
        """C41."""
        self.items: list[FoundRecord | FoundFree | Hidden] = []
        at = 2 * self.block
        while at < self.total:
            item = self.sound(at) or self.mend(at) or Hidden(at, self.hidden_length(at))
            self.items.append(item)
            at += item.length
        self.records = [item for item in self.items if isinstance(item, FoundRecord)]
        self.frees = [item for item in self.items if isinstance(item, FoundFree)]
        self.damaged = [item for item in self.items if isinstance(item, Hidden)]

    def sound(self, at: int) -> FoundRecord | FoundFree | None:
        """Return the record or free item at an offset if its head is sound (C21)."""
        try:
            item = Item.parse(bytes(self.content[at : at + HEAD]))
            if item.end % self.block or at + item.end > self.total:  # C4, C21
                return None
            if item.tag == 0xA1:
                return self.sound_record(at, item)
            if item.tag == 0xA2:
                free = asn1.decode_der(Free, item.der)
                if self.authentication.checks(item.head, at, item.last[0]):
                    return FoundFree(at, item.end, number(free.generation), free.root)
        except ValueError:
            pass
        return None  # among them a third header copy (C3)

    def mend(self, at: int) -> FoundRecord | FoundFree | None:
        """C67, C71: return the item if half of its check proves it, and have it sound."""
        head = bytes(self.content[at : at + HEAD])
        for candidate in candidates(head):
            end = check_end(candidate)
            if end is None or not self.authentication.half_checks(candidate, at, end):
                continue
            self.content[at : at + HEAD] = self.authentication.sealed(candidate, at, end)
            item = self.sound(at)
            if item:
                self.mended.append(at)
                return item
            self.content[at : at + HEAD] = head
        return None

    def sound_record(self, at: int, item: Item) -> FoundRecord | None:
        record = asn1.decode_der(Record, item.der)
        meta, (first, end) = record.meta, item.first
        kind, state = enumerated(meta.kind), enumerated(meta.state)
        if not self.authentication.checks(item.head, at, end):
            return None
        signed = item.head[first : end - 4 * 34]  # C22: mac, root, prev and check follow
        found = FoundRecord(at, item.end, meta, kind, state, signed)
        sound = (
            (0 <= meta.copy < meta.copies <= 2 and 0 <= meta.maximum < 1 << 61)  # C11
            and item.last[1] == HEAD  # C6
            and (record.align is not None) == (item.last[0] - end in (130, 259))  # C7
            and item.end == -(-(HEAD + meta.maximum) // self.block) * self.block  # C8
            and found.size <= meta.maximum  # C8
            and (allowed(meta.name, 1, 200) and allowed(meta.type, 0, 32))  # C9
        )
        if sound and (kind > WINDOW or state > IN_PLACE):
            raise Unsupported(f"C15: kind {kind}, state {state}")
        sound = sound and (
            (state == VOID or found.generation >= 1)  # C11
            and (state not in (UNWRITTEN_STATE, TOMBSTONE) or not found.size)  # C11
            and (state not in (UNWRITTEN_STATE, TOMBSTONE) or meta.crc32 == bytes(4))  # C11
            and (kind == WINDOW or state != IN_PLACE)  # C11
            and (state in (VOID, LIVE) or self.verifies(found))  # C21
        )
        return found if sound else None

    def hidden_length(self, at: int) -> int:
        """C43: the length of an item with a damaged head."""
        try:
            tag, _, end = frame(bytes(self.content[at : at + HEAD]), 0)
            ends = at + end == self.total or self.sound(at + end)
            if tag in (0xA1, 0xA2) and end % self.block == 0 and ends:
                return end
        except ValueError:
            pass
        before = self.items[-1] if self.items else None
        if isinstance(before, FoundRecord) and before.meta.copy < before.meta.copies - 1:
            return min(before.length, self.total - at)
        starts = range(at + self.block, self.total, self.block)
        return next((start for start in starts if self.sound(start)), self.total) - at

    def verifies(self, record: FoundRecord) -> bool:
        """C22, C23."""
        start = record.offset + HEAD
        live = record.state == LIVE
        blob = bytes(self.content[start : start + record.size]) if live else b""
        mac = self.authentication.digest(b"blobstore/1 blob", record.signed + blob)
        return hmac.compare_digest(mac, record.meta.mac)

    def decide(self) -> None:
        """C44."""
        self.overwriting: FoundRecord | None = None
        generations = [copy.durable for copy in self.headers]
        generations += [record.generation for record in self.records]
        frees = [free.generation for free in self.frees]
        self.highest = max(generations + frees)  # C30
        if self.highest == max([self.durable, *frees]):  # C35
            return
        newest = [record for record in self.records if record.generation == self.highest]
        found = [record for record in newest if record.state != VOID]
        if len({(r.members, r.meta.root, r.meta.prev) for r in found}) > 1:
            raise Corrupt("C44: the members of the newest commit disagree")
        if any(len(found) > record.members for record in found):
            raise Corrupt("C44: too many members")
        no_void = len(found) == len(newest)
        whole = no_void and all(len(found) == record.members for record in found)
        if whole and all(map(self.verifies, found)):
            return
        for record in found:
            record.orphan, record.undecided = not self.damaged, bool(self.damaged)
        if whole and len(found) == 1 and found[0].orphan and found[0].meta.copies == 1:
            self.overwriting = found[0]

    def gather(self) -> None:
        """C42, C46, C47."""
        sections: dict[bytes, list[Extent]] = {}
        for extent in self.extents():
            if extent.incomplete and not self.damaged:
                raise Corrupt("C47: a record is missing")
            sections.setdefault(extent.newest.meta.section_id, []).append(extent)
        self.newest: dict[bytes, FoundRecord] = {}
        self.lost: set[bytes] = set()  # sections that are corrupt whatever their blobs are
        for key, extents in sections.items():
            newest = max((extent.newest for extent in extents), key=lambda r: r.counts)
            incomplete = any(extent.incomplete for extent in extents)
            if not incomplete:
                self.require_sense(extents)
            if incomplete or any(extent.undecided for extent in extents):
                self.lost.add(key)
                self.newest[key] = newest
            elif newest.counts:
                self.newest[key] = newest
        counting = self.newest.values()
        if self.damaged:  # C67
            counting = self.visible().values()
        total = 0
        for record in counting:  # C24
            if record.state != TOMBSTONE:
                seed = self.authentication.store_id + record.signed + record.meta.mac
                total += number(hashlib.shake_256(b"blobstore/1 memb" + seed).digest(512))
        summed = (total % (1 << 4096)).to_bytes(512)
        self.root = self.authentication.digest(b"blobstore/1 root", summed)

    def visible(self) -> dict[bytes, FoundRecord]:
        """C67: the newest of the records that are there and not undecided."""
        found: dict[bytes, FoundRecord] = {}
        for record in self.records:
            known = found.get(record.meta.section_id)
            newer = known is None or known.counts < record.counts
            if record.counts and not record.undecided and newer:
                found[record.meta.section_id] = record
        return found

    def require_sense(self, extents: list[Extent]) -> None:
        """C12, C47."""
        if any(len({record.agreed for record in extent.records}) > 1 for extent in extents):
            raise Corrupt("C12: two copies disagree")
        counts = [extent.newest.counts for extent in extents]
        if max(counts) and counts.count(max(counts)) > 1:
            raise Corrupt("C47: two extents have the newest record")

    def extents(self) -> list[Extent]:
        """Return what lies beside each other."""
        found: list[Extent] = []
        before: FoundRecord | None = None
        for item in self.items:
            if not isinstance(item, FoundRecord):
                before = None
                continue
            if (
                before
                and (before.meta.copy, item.meta.copy) == (0, 1)
                and before.meta.section_id == item.meta.section_id
                and before.length == item.length
            ):
                found[-1] = Extent((before, item))
            else:
                found.append(Extent((item,)))
            before = item
        return found

    def name(self) -> None:
        """C13, C45."""
        self.blobs: dict[str, bytes | str] = {}
        for key in sorted(self.newest, key=self.lost.__contains__):
            record = self.newest[key]
            blob = CORRUPT if key in self.lost else self.blob(record)
            if blob is not None:
                if record.meta.name in self.blobs and key not in self.lost:
                    raise Corrupt("C13: two sections of one name")
                self.blobs.setdefault(record.meta.name, blob)

    def blob(self, newest: FoundRecord) -> bytes | str | None:
        if newest.state == TOMBSTONE:  # C47: left over
            return None
        if newest.state == UNWRITTEN_STATE:
            return CORRUPT if self.damaged else UNWRITTEN  # C67: it may be hidden
        if newest.state == IN_PLACE:  # C62
            return UNVERIFIED
        if not self.verifies(newest):  # C45
            return CORRUPT
        return bytes(self.content[newest.offset + HEAD :][: newest.size])

    def check_root(self) -> None:
        """C48, C67."""
        attested = [(copy.durable * 2, copy.header.root) for copy in self.headers]
        attested += [(free.generation * 2, free.root) for free in self.frees]
        for record in self.records:
            if record.state != VOID and not (record.orphan or record.undecided):
                attested.append((record.generation * 2, record.meta.root))
            elif record.generation:
                attested.append((record.generation * 2 - 1, record.meta.prev))
        last = max(at for at, _ in attested)
        self.fresh = all(root == self.root for at, root in attested if at == last)
        if not self.damaged and not self.fresh:
            raise Corrupt("C48: the root")
        counting = [at // 2 for at, _ in attested if at % 2 == 0]
        self.counted = max(counting)  # C68


@dataclass(frozen=True)
class Reading:
    """What section 5 says of a container."""

    blobs: dict[str, bytes | str]  # every section's blob, or UNWRITTEN, CORRUPT or UNVERIFIED
    left: dict[str, bytes | str]  # the same, if it may be older than it was (C67)
    damaged: tuple[int, ...]  # where; if anywhere, a name not in ``blobs`` may exist (C43)
    generation: int  # C30
    counted: int  # C68
    fresh: bool  # C67
    mended: tuple[int, ...]  # C67
    clean: bool  # C49
    fallen_back: bool  # C49
    root: bytes | None  # C48, C67; None if damage leaves it unknown


def read(container: bytes) -> Reading:
    """Return what is in a container."""
    reader = Reader(container)
    return Reading(
        blobs=reader.blobs if reader.fresh else dict.fromkeys(reader.blobs, CORRUPT),
        left=reader.blobs,
        damaged=tuple(item.offset for item in reader.damaged),
        generation=reader.highest,
        counted=reader.counted,
        fresh=reader.fresh,
        mended=tuple(reader.mended),
        clean=reader.durable == reader.highest,
        fallen_back=any(record.orphan for record in reader.records),
        root=reader.root if reader.fresh and not reader.lost else None,
    )
