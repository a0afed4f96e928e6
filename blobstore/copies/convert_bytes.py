"""Carrying a payload over byte by byte, with several workers.

Each worker has views of both ends of its own and takes the next piece when it is
done with one; they share nothing else. They are threads: the ciphers, the kernel
and NumPy's longer loops all run without the interpreter's lock.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final

from formats.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from formats.devices.device import BlockDevice

    Progress = Callable[[int, int], None]
    #: Views of the source and of the target, for one worker.
    Ends = tuple[BlockDevice, BlockDevice]
    #: Byte offset and length.
    Range = tuple[int, int]

#: Bytes that a worker reads and writes at a time, and holds in memory: larger ones
#: leave the processor's cache, smaller ones let workers wait for the interpreter.
PIECE_SIZE: Final = 2 << 20
#: More workers than this gain nothing: they wait for memory, or for the disk.
MOST_WORKERS: Final = 8
#: Bytes of zeros that become a hole in a file, if holes are asked for: a file system's block.
HOLE_SIZE: Final = 4096
#: Seconds between two reports of progress.
_TICK: Final = 0.1


def worker_count(jobs: int | None) -> int:
    """Return how many workers to use: as many as asked for, or as there are cores for."""
    if jobs is not None:
        if jobs < 1:
            raise ArgumentError(f"there is at least one worker, not {jobs}")
        return jobs
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MOST_WORKERS)


def carry(
    ends: Sequence[Ends],
    ranges: Iterable[Range],
    *,
    hole_size: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Copy ranges of bytes from each source view to the target's, which are equal.

    Memory is bounded by the number of workers. An interruption stops the workers
    and is raised again.

    Args:
        ends: One pair of views for each worker; each may be used from its thread
            while the others are used from theirs.
        ranges: In order, not overlapping; the target has what lies between them.
        hole_size: The target reads as zeros: leave blocks of so many zeros out. A
            divisor of `PIECE_SIZE`.
        progress: Called in this thread, with bytes done and in all.

    Raises:
        DeviceError: Reading or writing failed; the first such error.
    """
    ranges = list(ranges)
    work = _Work(ranges, hole_size)
    if len(ends) == 1 or work.total <= PIECE_SIZE:
        work.run(*ends[0], report=progress)
        return
    # The first piece is copied by one worker alone. It imports the modules that all of them
    # need; together they would wait for each other.
    work.run(*ends[0], most=1)
    pool = ThreadPoolExecutor(len(ends), thread_name_prefix="convert")
    try:
        futures = {pool.submit(work.run, *pair) for pair in ends}
        while futures:
            done, futures = wait(futures, _TICK, FIRST_EXCEPTION)
            if progress:
                progress(work.done, work.total)
            for future in done:
                future.result()
    finally:
        work.stop()
        pool.shutdown()


class _Work:
    """The pieces that are left to do, handed out to workers."""

    def __init__(self, ranges: Sequence[Range], hole_size: int | None) -> None:
        self.total = sum(length for _, length in ranges)
        self.done = 0
        self._pieces = _pieces(ranges)
        self._hole_size = hole_size
        self._lock = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Hand out nothing more."""
        self._stopped = True

    def run(
        self,
        source: BlockDevice,
        target: BlockDevice,
        report: Progress | None = None,
        *,
        most: int = sys.maxsize,
    ) -> None:
        """Copy pieces until there are none left, or ``most`` are done."""
        buffer = memoryview(bytearray(min(PIECE_SIZE, self.total)))
        try:
            while most > 0 and (piece := self._next()) is not None:
                most -= 1
                offset, length = piece
                view = buffer[:length]
                source.read_into(offset, view)
                if self._hole_size:
                    _write_data(target, offset, view, self._hole_size)
                else:
                    target.write(offset, view)
                with self._lock:
                    self.done += length
                if report:
                    report(self.done, self.total)
        except BaseException:
            self._stopped = True  # one that fails stops the others
            raise
        finally:
            buffer[:] = bytes(len(buffer))

    def _next(self) -> Range | None:
        with self._lock:
            return None if self._stopped else next(self._pieces, None)


def _pieces(ranges: Iterable[Range]) -> Iterator[Range]:
    """Cut ranges at multiples of the piece size, so that no piece parts a sector or cluster."""
    for start, length in ranges:
        at, end = start, start + length
        while at < end:
            stop = min(end, at - at % PIECE_SIZE + PIECE_SIZE)
            yield at, stop - at
            at = stop


def _write_data(target: BlockDevice, offset: int, view: memoryview, hole_size: int) -> None:
    """Write what is not zero, in runs of whole blocks."""
    zeros = bytes(hole_size)
    start = None
    for at in range(0, len(view), hole_size):
        block = view[at : at + hole_size]
        # The first byte tells nearly always; comparing bytes is one call.
        is_hole = not block[0] and bytes(block) == zeros[: len(block)]
        if is_hole and start is not None:
            target.write(offset + start, view[start:at])
            start = None
        elif not is_hole and start is None:
            start = at
    if start is not None:
        target.write(offset + start, view[start:])
