"""Which byte of the payload lies where, at every moment of a LUKS2 re-encryption.

A re-encryption moves the payload in *zones*, in an order that its direction says. How much
has been moved is one number, `Progress.done`; everything else follows from it: the pieces
of the payload that are still in their old form, or already in their new one, the segments
that the header describes them with, and the next zone (L152, L153). Nothing here does I/O.

The classes differ in the order of the zones and in what happens to the first bytes of the
payload, which a header takes the place of, or gives it back: `MovedPlan` and its two kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, NamedTuple

from formats.frozen import Frozen, replace
from luks.model import SECTOR_SIZE, Segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from luks.header.luks2_reencrypt_rules import ReencryptRecord

#: The form of a piece: as it was, as it will be, being moved from one to the other, or the
#: first bytes in their old form at another place.
Kind = Literal["old", "new", "hot", "moved"]
#: What makes a zone survive a crash: checksums of its old sectors, a copy of them, the old
#: sectors themselves, which lie elsewhere; or nothing.
Protection = Literal["checksum", "journal", "shift", "none"]

HOT_FLAG = "in-reencryption"


class Zone(NamedTuple):
    """A range of the payload that one step moves, in bytes."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def first_sector(self) -> int:
        """Number of its first sector, in 512-byte units: what IVs are made of."""
        return self.start // SECTOR_SIZE


class Progress(NamedTuple):
    """How far a re-encryption is.

    Attributes:
        done: Bytes that are in their new form.
        hot: Bytes of the zone that was being moved when the header was written, or 0.
    """

    done: int
    hot: int = 0


class Piece(NamedTuple):
    """A range of the payload with one form."""

    start: int
    end: int
    kind: Kind


class Plan(Frozen, ABC):
    """What a re-encryption does, apart from how far it is.

    Attributes:
        record: Mode, direction and resilience.
        old: The payload before, as the header describes it, without flags.
        new: The same afterwards.
        size: Bytes of the payload.
        is_fixed: Whether the header states the size of the payload as well.
    """

    record: ReencryptRecord
    old: Segment
    new: Segment
    size: int
    is_fixed: bool

    @abstractmethod
    def pieces(self, progress: Progress) -> Iterable[Piece]:
        """Return the pieces of the payload, in order; some may be empty."""

    @abstractmethod
    def zone(self, progress: Progress, limit: int) -> Zone:
        """Return the zone to be moved next, of at most ``limit`` bytes where that is possible.

        If one is hot, it is that one.
        """

    @abstractmethod
    def guesses(self, segments: Sequence[Segment]) -> Iterator[Progress]:
        """Yield how far it may be if the payload has these segments; see `find_progress`."""

    @property
    def step_size(self) -> int:
        """Bytes of which zones are multiples, except at the end of the payload."""
        return max(self.old.sector_size, self.new.sector_size, self.record.sector_size)

    def protection(self, zone: Zone) -> Protection:
        """Return what makes a zone survive a crash."""
        del zone
        match self.record.resilience:
            case "checksum" | "journal" as protection:
                return protection
        return "none"

    def source(self, zone: Zone) -> int:
        """Return the byte offset in the device at which a zone has its old form."""
        return self.old.offset + zone.start

    def target(self, zone: Zone) -> int:
        """Return the byte offset in the device at which a zone gets its new form."""
        return self.new.offset + zone.start

    def segments(self, progress: Progress) -> Iterator[tuple[Segment, Kind]]:
        """Yield the segments that describe the payload, and what kind of piece each is."""
        for piece in self.pieces(progress):
            if piece.start < piece.end:
                yield self._segment(piece, progress), piece.kind

    def _segment(self, piece: Piece, progress: Progress) -> Segment:
        form = self.old if piece.kind == "old" else self.new
        dynamic = piece.end == self.size and self._is_dynamic(piece, progress)
        return replace(
            form,
            offset=form.offset + piece.start,
            size=None if dynamic else piece.end - piece.start,
            iv_tweak=piece.start // SECTOR_SIZE if form.type == "crypt" else 0,
            flags=(HOT_FLAG,) if piece.kind == "hot" else (),
        )

    def _is_dynamic(self, piece: Piece, progress: Progress) -> bool:
        """Say whether the last piece takes what the device has."""
        if piece.kind not in {"old", "new"}:
            return False
        return not self.is_fixed or progress.done == self.size

    def find_progress(self, segments: Sequence[Segment]) -> Iterator[Progress]:
        """Yield how far it is if the payload has these segments; nothing if it never has.

        Before the first step and after the last there may be one and the same segment, of
        which only the key has changed.

        Args:
            segments: Those of the payload in a header, in order.
        """
        for guess in dict.fromkeys(self.guesses(segments)):
            whole = 0 <= guess.done <= self.size and 0 <= guess.hot <= self.size - guess.done
            if whole and _are_alike(segments, [segment for segment, _ in self.segments(guess)]):
                yield guess


def _are_alike(found: Sequence[Segment], expected: Sequence[Segment]) -> bool:
    """Say whether segments are as expected; a missing ``iv_tweak`` is not asked for (L185)."""
    return len(found) == len(expected) and all(
        one in {other, replace(other, iv_tweak=0)}
        for one, other in zip(found, expected, strict=True)
    )


class ForwardPlan(Plan):
    """From the start of the payload to its end, each zone at its place."""

    def pieces(self, progress: Progress) -> Iterable[Piece]:
        done, end = progress.done, progress.done + progress.hot
        yield Piece(0, done, "new")
        yield Piece(done, end, "hot")
        yield Piece(end, self.size, "old")

    def zone(self, progress: Progress, limit: int) -> Zone:
        return Zone(progress.done, min(self.size, progress.done + (progress.hot or limit)))

    def guesses(self, segments: Sequence[Segment]) -> Iterator[Progress]:
        for segment in segments:
            if segment.is_hot:
                yield Progress(segment.offset - self.new.offset, segment.size or 0)
        yield Progress(0)
        yield Progress(segments[0].size or 0)
        yield Progress(self.size)


class BackwardPlan(Plan):
    """From the end of the payload to its start, each zone at its place."""

    def pieces(self, progress: Progress) -> Iterable[Piece]:
        end = self.size - progress.done
        yield Piece(0, end - progress.hot, "old")
        yield Piece(end - progress.hot, end, "hot")
        yield Piece(end, self.size, "new")

    def zone(self, progress: Progress, limit: int) -> Zone:
        end = self.size - progress.done
        size = progress.hot or min(end, limit)
        # So that all but the last zone end at a multiple of the limit.
        start = end - size if progress.hot else (end - 1) // limit * limit
        return Zone(max(0, start), end)

    def guesses(self, segments: Sequence[Segment]) -> Iterator[Progress]:
        for segment in segments:
            if segment.is_hot:
                size = segment.size or 0
                yield Progress(self.size - (segment.offset - self.new.offset) - size, size)
        yield Progress(0)
        yield Progress(self.size - (segments[0].size or 0))
        yield Progress(self.size)


class MovedPlan(Plan):
    """The payload moves by the size of the header, and its first bytes were copied elsewhere.

    Attributes:
        moved: The first bytes, as the header describes them, without flags.
    """

    moved: Segment

    @property
    def moved_size(self) -> int:
        """Bytes that were copied elsewhere."""
        return self.moved.size or 0

    def source(self, zone: Zone) -> int:
        return self.moved.offset if zone.start == 0 else super().source(zone)

    def _segment(self, piece: Piece, progress: Progress) -> Segment:
        return self.moved if piece.kind == "moved" else super()._segment(piece, progress)


class ShiftedEncryption(MovedPlan):
    """A plain payload is encrypted from its end to its start, towards the end of the device.

    Its first bytes, where the header is, were copied after the room that the last zone
    needs, and are encrypted from there last.
    """

    def protection(self, zone: Zone) -> Protection:
        del zone
        return "shift"

    def pieces(self, progress: Progress) -> Iterable[Piece]:
        end, moved = self.size - progress.done, self.moved_size
        rest = end - progress.hot
        yield Piece(0, min(moved, rest), "moved")
        yield Piece(moved, rest, "old")
        yield Piece(rest, end, "hot")
        yield Piece(end, self.size, "new")

    def zone(self, progress: Progress, limit: int) -> Zone:
        end, moved = self.size - progress.done, self.moved_size
        if progress.hot or end <= moved:
            return Zone(end - (progress.hot or end), end)
        return Zone(max(moved, end - min(limit, self.record.shift_size)), end)

    def guesses(self, segments: Sequence[Segment]) -> Iterator[Progress]:
        for segment in segments:
            if segment.is_hot:
                size = segment.size or 0
                yield Progress(self.size - (segment.offset - self.new.offset) - size, size)
        yield Progress(
            self.size - sum(segment.size or 0 for segment in segments if segment.type == "linear")
        )

    def _is_dynamic(self, piece: Piece, progress: Progress) -> bool:
        return piece.kind == "new" and progress.done == self.size


class ShiftedDecryption(MovedPlan):
    """An encrypted payload is decrypted from its start to its end, towards the start of the device.

    Its first bytes were copied over the header, which lies in a file now; they are
    decrypted there last, at their place.
    """

    def protection(self, zone: Zone) -> Protection:
        if zone.start:
            return "shift"
        return "journal" if self.record.resilience == "datashift-journal" else "checksum"

    def pieces(self, progress: Progress) -> Iterable[Piece]:
        moved = self.moved_size
        if progress.done == self.size:
            yield Piece(0, self.size, "new")
            return
        if progress.done >= self.size - moved:
            yield Piece(0, moved, "hot" if progress.hot else "moved")
            yield Piece(moved, self.size, "new")
            return
        done = moved + progress.done
        yield Piece(0, moved, "moved")
        yield Piece(moved, done, "new")
        yield Piece(done, done + progress.hot, "hot")
        yield Piece(done + progress.hot, self.size, "old")

    def zone(self, progress: Progress, limit: int) -> Zone:
        start = self.moved_size + progress.done
        if start >= self.size:
            return Zone(0, self.moved_size)
        size = progress.hot or min(limit, self.record.shift_size)
        return Zone(start, min(self.size, start + size))

    def guesses(self, segments: Sequence[Segment]) -> Iterator[Progress]:
        rest = self.size - self.moved_size
        for segment in segments:
            if segment.is_hot:
                at, size = segment.offset - self.new.offset, segment.size or 0
                yield Progress(rest if at == 0 else at - self.moved_size, size)
        linear = [segment for segment in segments if segment.type == "linear"]
        yield Progress(sum(segment.size or 0 for segment in linear))
        yield Progress(rest)
        yield Progress(self.size)
