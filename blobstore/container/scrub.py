"""Scrubbing: both copies of every section rewritten, and zeros elsewhere: C78, C79."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blobstore.container.commit import Change, commit
from blobstore.container.durable import PIECE_SIZE, Span
from blobstore.container.extents import free_span
from blobstore.container.verification import Problem
from blobstore.errors import CorruptBlobError
from formats.container.model import HEAD_SIZE, State
from formats.devices.device import read_exactly
from formats.errors import DeviceError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.container.open_container import OpenContainer
    from blobstore.container.sections import Section

    Progress = Callable[[int, int], None]

_log = LateLogger(__name__)

#: Bytes that are overwritten with zeros before the next flush.
_BATCH_SIZE = 16 << 20


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What `Store.scrub` did.

    Attributes:
        rewritten: Sections whose copies were all rewritten.
        wiped: Bytes that no section uses and that were not zero before.
        skipped: Sections that were left as they are, and why.
    """

    rewritten: int
    wiped: int
    skipped: tuple[Problem, ...]


def scrub(container: OpenContainer, progress: Progress | None = None) -> Scrubbed:
    """Rewrite every section, copy by copy, and wipe what no section uses.

    No blob changes. One blob at a time is in memory. It can be interrupted
    anywhere; every step is a commit, or changes what has no meaning.

    Args:
        container: Sound, recovered, and without open windows.
        progress: Called with the bytes done and in all.

    Raises:
        DamagedHeadError: A head is damaged: repair the store first.
        DeviceError, PoisonedStoreError: As in `commit`.
    """
    return _Scrubber(container, progress).run()


class _Scrubber:
    def __init__(self, container: OpenContainer, progress: Progress | None) -> None:
        self._container = container
        self._progress = progress
        directory = container.directory
        self._total = sum(s.place[1] for s in directory.sections.values())
        self._total += sum(free.length for free in directory.free.values())
        self._done = 0
        self._wiped = 0
        self._waiting: list[Span] = []

    def run(self) -> Scrubbed:
        self._container.next_generation()  # refuses a store that must not be written
        directory = self._container.directory
        skipped = []
        for section in list(directory.sections.values()):
            problem = self._section(section)
            if problem:
                _log.warning("%s", problem.message)
                skipped.append(problem)
            self._advance(section.place[1])
        for offset, item in directory.free.items():
            block = self._container.block_size
            if not self._is_blank(offset + HEAD_SIZE, block - HEAD_SIZE):
                self._wiped += block - HEAD_SIZE
                self._container.writer.write([free_span(self._container, offset, item)])
            self._advance(block)
            self._wipe(offset + block, item.length - block, count=True)
        self._flush()
        return Scrubbed(len(directory.sections) - len(skipped), self._wiped, tuple(skipped))

    def _section(self, section: Section) -> Problem | None:
        """Rewrite a section's copies; say why, if that cannot be done."""
        newest = section.newest
        version = newest.version
        blob = b""
        if version.state is not State.UNWRITTEN:
            try:
                blob = self._container.blobs.read(newest)
            except (CorruptBlobError, DeviceError) as error:
                return Problem(f"not scrubbed: {error}", section.name, version.generation)
        if len(section.copies) == 1:
            # To write it again would not be atomic (C32).
            used = -(-(HEAD_SIZE + len(blob)) // self._container.block_size)
            used *= self._container.block_size
            self._wipe(newest.offset + used, newest.length - used)
            self._flush()
            return None
        for _ in section.copies:
            change = Change(
                section,
                section.name,
                version.state,
                blob,
                replaces=section,
                ranges=((0, newest.length),),
            )
            commit(self._container, [change])
        return None

    def _wipe(self, offset: int, size: int, *, count: bool = False) -> None:
        """Overwrite what is not zero; ``count`` towards the progress."""
        for position, length in _pieces(offset, size):
            if not self._is_blank(position, length):
                self._wiped += length
                self._waiting.append(Span(position, (), length))
                if len(self._waiting) * PIECE_SIZE >= _BATCH_SIZE:
                    self._flush()
            if count:
                self._advance(length)

    def _flush(self) -> None:
        if self._waiting:
            self._container.writer.write_free(self._waiting)
            self._waiting = []

    def _is_blank(self, offset: int, size: int) -> bool:
        """Say whether some bytes are zero: what is need not be written, nor a hole filled."""
        try:
            data = read_exactly(self._container.device, offset, size)
        except DeviceError:
            return False  # writing may make it readable again
        return data.count(0) == size

    def _advance(self, size: int) -> None:
        self._done += size
        if self._progress:
            self._progress(self._done, self._total)


def _pieces(offset: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, PIECE_SIZE):
        yield offset + start, min(PIECE_SIZE, size - start)
