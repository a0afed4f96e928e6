"""What is left of a record whose head is lost: its blob, and what the head may have said.

Nothing here is certain. `blobstore.container.repair.mending` and
`blobstore.container.repair.rebuilding` look for proof (C71, C73).
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from formats.container.decoder import Record, decode_item
from formats.container.encoder import record_frame
from formats.container.model import HEAD_SIZE, Kind, State, Version
from formats.devices.device import read_exactly
from formats.errors import DeviceError, FormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from blobstore.container.authentication import Authenticator
    from blobstore.container.sections import Copy
    from formats.container.encoder import RecordFrame
    from formats.container.model import Identity
    from formats.devices.device import BlockDevice

#: The largest blob, in bytes, whose head is searched for: it is held in memory.
MAX_REMAINS = 256 << 20

#: The most bytes hashed while the head of one record is searched for, and what
#: a candidate costs besides its blob, in the same unit: some seconds in all.
WORK_LIMIT = 2 << 30
_CANDIDATE_COST = 16 << 10

# The most generations tried, and the most members of a commit that no other head tells of.
_MAX_GENERATIONS = 4096
_MAX_MEMBERS = 8

_UNKNOWN = bytes(32)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a lost head may have said; its root and prev are filled in later."""

    version: Version
    frame: RecordFrame
    member: int


@dataclass(slots=True, eq=False)
class Lost:
    """A record whose head is damaged, and whose other copy says what it is of.

    Attributes:
        offset: Of the record, in bytes.
        identity: Its own, with the name that its twin has.
        length: Bytes of the record.
        frame: For its head.
        twin: The other copy.
    """

    offset: int
    identity: Identity
    length: int
    frame: RecordFrame
    twin: Copy


class Remains:
    """What lies where a lost record is."""

    def __init__(
        self,
        device: BlockDevice,
        authenticator: Authenticator,
        lost: Lost,
        block_size: int,
        names: Iterable[str] = (),
    ) -> None:
        """Look at one lost record; ``names`` are what its section may be called since."""
        self.lost = lost
        self._names = tuple(names)
        self._device = device
        self._authenticator = authenticator
        self._block_size = block_size

    @cached_property
    def head(self) -> bytes | None:
        """The damaged head; None if it cannot be read."""
        try:
            return read_exactly(self._device, self.lost.offset, HEAD_SIZE)
        except DeviceError:
            return None

    @cached_property
    def blob(self) -> bytes | None:
        """What the record has room for; None if it cannot be read, or is too large."""
        size = self.lost.identity.max_size
        if size > MAX_REMAINS:
            return None
        try:
            return read_exactly(self._device, self.lost.offset + HEAD_SIZE, size)
        except DeviceError:
            return None

    @cached_property
    def hint(self) -> Record | None:
        """The damaged head as it reads, if it reads as one of this record."""
        if self.head is None:
            return None
        try:
            item = decode_item(self.head, self._block_size)
        except (FormatError, UnsupportedError):
            return None
        if not isinstance(item, Record):
            return None
        return (
            item
            if item.identity._replace(name=self.lost.identity.name) == (self.lost.identity)
            else None
        )

    def mac(self, frame: RecordFrame, version: Version) -> bytes:
        """Return the mac that a record with this blob has (C22)."""
        blob = (self.blob or b"") if version.state is State.LIVE else b""
        return self._authenticator.mac(
            frame.mac_input(version), (memoryview(blob)[: version.size],)
        )

    def crc32(self, size: int) -> int:
        """Return the crc32 of the first bytes of the blob."""
        return zlib.crc32(memoryview(self.blob or b"")[:size])

    def likely_sizes(self) -> list[int]:
        """Return sizes, the likeliest first: up to the last byte of each block that is not zero."""
        return list(dict.fromkeys((*self._told_sizes(), *(low for low, _ in self._ends()))))

    def other_sizes(self) -> Iterator[int]:
        """Yield the other sizes that a blob may have: it may end in zeros."""
        known = set(self.likely_sizes())
        for low, high in self._ends():
            yield from (size for size in range(low, high + 1) if size not in known)

    def _told_sizes(self) -> Iterator[int]:
        blob = self.blob or b""
        for size in (
            self.hint.version.size if self.hint else 0,
            self.lost.twin.version.size,
            len(blob),
            len(blob.rstrip(b"\0")),
            0,
        ):
            # C50: from the blob's end to the end of its block there are zeros.
            end = -(-(HEAD_SIZE + size) // self._block_size) * self._block_size - HEAD_SIZE
            if size <= len(blob) and not any(blob[size:end]):
                yield size

    def _ends(self) -> Iterator[tuple[int, int]]:
        """Yield the lowest and highest size that ends in each block."""
        blob = self.blob or b""
        start = 0
        end = self._block_size - HEAD_SIZE
        while start < len(blob) or start == 0:
            stop = min(end, len(blob))
            used = len(blob[start:stop].rstrip(b"\0"))
            # What ends where the block starts ended in the block before.
            yield max(start + used, start + 1 if start else 0), stop
            start, end = end, end + self._block_size
            if start >= len(blob):
                return

    # -------------------------------------------------------- candidates

    def candidates(
        self, above: int, highest: int, members: dict[int, int], complete: set[int]
    ) -> Iterator[Candidate]:
        """Yield what the head may have said, the likeliest first, within `WORK_LIMIT`.

        Args:
            above: Its generation is higher.
            highest: Its generation is not.
            members: Of commits that other records tell of, by generation.
            complete: Generations all of whose records are known.
        """
        if self.blob is None:
            return
        pairs = self._pairs(above, highest, members, complete)
        frames = self._frames()
        likely = self.likely_sizes()
        work = WORK_LIMIT
        if self.lost.identity.kind is Kind.WINDOW:
            size = self.lost.identity.max_size
            for (generation, number), frame in itertools.product(pairs, frames):
                yield self._candidate(frame, State.IN_PLACE, generation, number, size)
        for sizes, some in (
            (likely, pairs[:64]),
            (self.other_sizes(), pairs[:8]),
            (likely, pairs[64:]),
            (self.other_sizes(), pairs[8:64]),
        ):
            for size in sizes if some else ():
                for generation, number in some:
                    for frame in frames:
                        work -= _CANDIDATE_COST + size
                        if work < 0:
                            return
                        yield self._candidate(frame, State.LIVE, generation, number, size)
                        if not size:
                            yield self._candidate(frame, State.UNWRITTEN, generation, number, 0)

    def _candidate(
        self, frame: RecordFrame, state: State, generation: int, members: int, size: int
    ) -> Candidate:
        crc32 = self.crc32(size) if state is State.LIVE else 0
        version = Version(state, generation, members, size, crc32, _UNKNOWN, _UNKNOWN, _UNKNOWN)
        meta = frame.mac_input(version)
        mac = self.mac(frame, version)
        return Candidate(version._replace(mac=mac), frame, self._authenticator.member(meta, mac))

    def _frames(self) -> list[RecordFrame]:
        """Return what may surround the version: with the twin's name, or with another."""
        hint, identity = self.hint, self.lost.identity
        frames = [self.lost.frame]
        if hint and hint.identity != identity:
            frames.insert(0, hint.frame)
        return frames + [
            record_frame(identity._replace(name=name), self._block_size)
            for name in self._names
            if name != identity.name
        ]

    def _pairs(
        self, above: int, highest: int, members: dict[int, int], complete: set[int]
    ) -> list[tuple[int, int]]:
        """Return generations with members, the likeliest first."""
        lowest = max(above + 1, highest - _MAX_GENERATIONS + 1)
        generations = [g for g in range(highest, lowest - 1, -1) if g not in complete]
        pairs: list[tuple[int, int]] = []
        if self.hint and above < self.hint.version.generation <= highest:
            pairs.append((self.hint.version.generation, self.hint.version.members))
        pairs += [(g, members[g]) for g in generations if g in members]
        unknown = [g for g in generations if g not in members]
        # C33: what initialising wrote has no members.
        pairs += [(g, 0) for g in (1,) if lowest <= 1 <= highest]
        pairs += [(g, 1) for g in unknown]
        pairs += _several(unknown)
        return list(dict.fromkeys(pairs))


def _several(generations: Iterable[int]) -> Iterator[tuple[int, int]]:
    return ((g, number) for g in generations for number in range(2, _MAX_MEMBERS + 1))
