"""Reading and checking everything in a container.

`open` and `get` check what they need. This reads every record, the older copies
included, and asks a second ASN.1 reader about every head, those of free items
and of void records too.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.container.asn1 import require_canonical
from formats.container.decoder import locate_check
from formats.container.der import OCTET_STRING, encode, read_framing
from formats.container.model import DIGEST_SIZE, FREE_TAG, HEAD_SIZE, State, Version
from formats.devices.device import read_exactly
from formats.errors import DeviceError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.container.open_container import OpenContainer
    from blobstore.container.sections import Copy, Section

    Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        message: What it is.
        name: The section's name, or None.
        generation: Of the damaged record, or None.
        offset: Byte offset in the container, or None.
    """

    message: str
    name: str | None = None
    generation: int | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class CheckedItem:
    """One item of the container, in its place.

    Attributes:
        offset: Byte offset in the container.
        length: Its bytes.
        what: ``"header"``, ``"record"``, ``"free"`` or ``"damaged"``.
        verdict: What is known of it now.
        name: Of the section whose record it is, or None.
        copy: Which copy of the header or section; None for others.
        generation: What its head says; None if it is damaged.
        size: Bytes of its blob.
    """

    offset: int
    length: int
    what: str
    verdict: str
    name: str | None = None
    copy: int | None = None
    generation: int | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What `Store.verify` and `Store.repair` found: true if that is sound.

    Attributes:
        sections: Number of sections.
        records: Number of records whose mac and crc32 were computed.
        blob_bytes: Bytes of blobs read for that.
        generation: Highest generation of the store that counts (C68).
        closed: Whether the store had been closed after its last commit. Where it
            was not, a later one may have left no trace (C74).
        problems: What is wrong; empty if all is well.
        notes: What is worth knowing and not wrong. An older copy that does not verify
            is one: a put that was interrupted leaves it so, and the next one
            overwrites it. So is an extent that no section needs, and a window that
            was written in place: what was written before its commit is not authentic.
        items: Every item, in order.
        free_bytes: Bytes of free items.
        repairs: What `Store.repair` did, or opening for it.
    """

    sections: int
    records: int
    blob_bytes: int
    generation: int
    closed: bool
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]
    items: tuple[CheckedItem, ...] = ()
    free_bytes: int = 0
    repairs: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok


class Verified:
    """Records that verify, found while others use the container between two calls of `look`.

    A record stays what it is until a commit gives its place another version, which is known
    by its generation and mac. So `verify` needs to read again only what changed meanwhile.
    """

    def __init__(self, container: OpenContainer, progress: Progress | None = None) -> None:
        """Know none yet.

        Args:
            container: Not modified. Nothing else uses it during a call.
            progress: As for `verify`.
        """
        self._container = container
        self._progress = progress
        self._known: set[tuple[int, Version]] = set()
        self._names = iter(list(container.directory.sections))
        self._done = 0
        self._total = _blob_bytes(container)

    def look(self, seconds: float) -> bool:
        """Read records for so long, or one that takes longer; return whether more are left."""
        deadline = time.monotonic() + seconds
        for name in self._names:
            section = self._container.directory.sections.get(name)
            for copy in () if section is None else filter(None, section.copies):
                # What is written in place changes without a commit.
                if copy.version.state is State.LIVE and not self._problem(copy):
                    self._known.add((copy.offset, copy.version))
            if time.monotonic() > deadline:
                return True
        return False

    def includes(self, copy: Copy) -> bool:
        """Say whether a record was found to verify, and is the same now."""
        return (copy.offset, copy.version) in self._known

    def told(self, done: int, total: int) -> None:
        """Report progress of what comes after: not less than there was before."""
        self._done = max(self._done, done)
        if self._progress:
            self._progress(min(self._done, total), total)

    def _problem(self, copy: Copy) -> str:
        return _problem_of(self._container, copy, self._advance)

    def _advance(self, size: int) -> None:
        self.told(self._done + size, self._total)


def verify(
    container: OpenContainer, progress: Progress | None = None, verified: Verified | None = None
) -> Report:
    """Check both headers, every head, and every blob in every copy.

    Writes nothing.

    Args:
        container: Not modified.
        progress: Called with the blob bytes done and in all.
        verified: Records that need not be read again; it gets the progress instead.
    """
    return _Verifier(container, progress, verified).report()


def _blob_bytes(container: OpenContainer) -> int:
    return sum(
        copy.version.size
        for _, section in container.directory.every_section()
        for copy in section.copies
        if copy and copy.version.state is State.LIVE
    )


def _problem_of(container: OpenContainer, copy: Copy, advance: Callable[[int], None]) -> str:
    """Read a record; return what is wrong with it, or nothing."""
    crc32 = 0

    def observe(piece: bytearray) -> None:
        nonlocal crc32
        crc32 = zlib.crc32(piece, crc32)
        advance(len(piece))

    try:
        if not container.blobs.verifies(copy, observe):
            return "does not verify [C23]"
        if copy.version.state is not State.IN_PLACE and crc32 != copy.version.crc32:
            return "has another crc32 than its record says [C10]"
    except DeviceError as error:
        return f"cannot be read: {error}"
    return ""


class _Verifier:
    def __init__(
        self, container: OpenContainer, progress: Progress | None, verified: Verified | None
    ) -> None:
        self._container = container
        self._verified = verified
        self._progress = progress if verified is None else verified.told
        self._problems: list[Problem] = []
        self._notes: list[Problem] = []
        self._items: list[CheckedItem] = []
        self._records = 0
        self._done = 0
        self._total = _blob_bytes(container)

    def report(self) -> Report:
        directory = self._container.directory
        self._check_headers()
        for offset, damaged in directory.damaged:
            self._add(f"a damaged head hides {damaged.length} bytes [C43]", offset=offset)
            self._items.append(CheckedItem(offset, damaged.length, "damaged", "damaged head"))
        if not directory.fresh:
            self._add(
                "nothing proves that the sections which are left are the newest, nor that they are "
                "all [C67]",
                offset=directory.damaged[0][0],
            )
        for offset in self._container.mended:
            self._add(
                f"the head at byte {offset} is damaged; its check proves what it said [C67]",
                offset=offset,
            )
        for name, section in directory.every_section():
            self._check_section(section, name)
            for extent in section.rivals:
                for copy in filter(None, extent.copies):
                    self._check_head(copy.offset)
                    self._list(copy, name, "undecided")
        for extent in directory.left_over:
            offset, length = extent.place
            message = f"an interrupted change left {length} bytes that the next writer frees [C46]"
            self._notes.append(Problem(message, offset=offset))
            for copy in filter(None, extent.copies):
                self._check_head(copy.offset)
                self._list(copy, extent.name, "left over")
        for offset, free in directory.free.items():
            self._check_head(offset)
            self._items.append(
                CheckedItem(offset, free.length, "free", "sound", generation=free.generation)
            )
        return Report(
            sections=len(directory.sections) + len(directory.gave_way),
            records=self._records,
            blob_bytes=self._done,
            generation=directory.counted,
            closed=directory.clean,
            problems=tuple(self._problems),
            notes=tuple(self._notes),
            items=tuple(sorted(self._items, key=lambda item: item.offset)),
            free_bytes=sum(free.length for free in directory.free.values()),
        )

    def _check_headers(self) -> None:
        size = self._container.block_size
        for copy, header in enumerate(self._container.header_copies):
            offset = copy * size
            self._items.append(
                CheckedItem(
                    offset,
                    size,
                    "header",
                    "sound" if header else "damaged",
                    copy=copy,
                    generation=header.durable_generation if header else None,
                )
            )
            if header is None:
                self._add(f"header copy {copy} is damaged [C40]", offset=offset)
                continue
            block = self._read(offset, size)
            if block is not None:
                start = read_framing(block, 0)[1] if copy == 0 else 0
                self._require_canonical(block[start:], offset)

    def _check_section(self, section: Section, name: str) -> None:
        newest = section.newest
        if section.damage:
            self._add(
                f"{_titled(name)} {section.damage.reason}",
                name=name or None,
                generation=section.damage.generation,
                offset=section.damage.offset,
            )
        if newest.version.state is State.IN_PLACE:
            self._add(
                f"{_titled(name)} was being written in place and is unverified [C62]",
                name=name or None,
                generation=newest.version.generation,
                offset=newest.offset,
            )
        since = section.in_place_since
        if since is not None and newest.version.state is State.LIVE:
            generation = newest.version.generation
            message = (
                f"section {name!r} was written in place after generation {since}: generation "
                f"{generation} holds what was there when it was committed, whoever wrote it [C62]"
            )
            self._notes.append(Problem(message, name, generation, newest.offset))
        for copy in filter(None, section.copies):
            self._check_head(copy.offset)
            verdict = copy.version.state.name.lower().replace("_", " ")
            if copy.version.state is not State.VOID:
                reason = self._check_record(name, copy, newest=copy is newest)
                verdict = f"{verdict}, {reason or 'verified'}"
            self._list(copy, name, verdict)

    def _list(self, copy: Copy, name: str, verdict: str) -> None:
        version = copy.version
        size = version.size if version.state is State.LIVE else 0
        self._items.append(
            CheckedItem(
                copy.offset,
                copy.length,
                "record",
                verdict,
                name or None,
                copy.identity.copy,
                version.generation,
                size,
            )
        )

    def _check_record(self, name: str, copy: Copy, *, newest: bool) -> str:
        """Read a record, unless that was done; return what is wrong with it, or nothing."""
        version = copy.version
        self._records += 1
        if self._verified is not None and self._verified.includes(copy):
            self._advance(version.size)
            return ""
        reason = _problem_of(self._container, copy, self._advance)
        if not reason:
            return ""
        what = "blob" if newest else "previous blob"
        message = f"{_titled(name)}: the {what} of generation {version.generation} {reason}"
        found = self._problems if newest else self._notes
        found.append(Problem(message, name or None, version.generation, copy.offset))
        return reason

    def _check_head(self, offset: int) -> None:
        """Read a head again and ask the other ASN.1 reader about it."""
        head = self._read(offset, HEAD_SIZE)
        if head is None:
            return
        try:
            tag, start, _ = read_framing(head, 0)
            fields = head[start : locate_check(head) + DIGEST_SIZE]
        except FormatError as error:
            self._add(f"a head changed while it was open: {error}", offset=offset)
        else:
            if tag == FREE_TAG:
                # Its filler may have any length and means nothing.
                fields = encode(FREE_TAG, fields + encode(OCTET_STRING, b""))
            self._require_canonical(fields, offset)

    def _require_canonical(self, encoding: bytes, offset: int) -> None:
        try:
            require_canonical(encoding)
        except FormatError as error:
            self._add(f"the head at byte {offset}: {error}", offset=offset)

    def _read(self, offset: int, size: int) -> bytes | None:
        if offset in self._container.mended and size == HEAD_SIZE:
            return self._container.mended[offset]
        try:
            return read_exactly(self._container.device, offset, size)
        except DeviceError as error:
            self._add(f"byte {offset} cannot be read: {error}", offset=offset)
            return None

    def _advance(self, size: int) -> None:
        self._done += size
        if self._progress:
            self._progress(self._done, self._total)

    def _add(
        self,
        message: str,
        *,
        offset: int,
        name: str | None = None,
        generation: int | None = None,
    ) -> None:
        self._problems.append(Problem(message, name, generation, offset))


def _titled(name: str) -> str:
    return f"section {name!r}" if name else "a section whose name is not known"
