"""Counts of all clusters of an image, in memory proportional to those in use."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK_BITS: Final = 12
#: Counts that are kept together.
CHUNK: Final = 1 << _CHUNK_BITS
_MASK: Final = CHUNK - 1
_ZEROS: Final = array("H", bytes(2 * CHUNK))


class SparseCounts:
    """A number for each cluster, most of them zero or small."""

    def __init__(self) -> None:
        self._chunks: dict[int, array[int]] = {}

    def __getitem__(self, cluster: int) -> int:
        chunk = self._chunks.get(cluster >> _CHUNK_BITS)
        return 0 if chunk is None else chunk[cluster & _MASK]

    def __setitem__(self, cluster: int, count: int) -> None:
        number = cluster >> _CHUNK_BITS
        chunk = self._chunks.get(number)
        if chunk is None:
            if not count:
                return
            chunk = self._chunks[number] = _ZEROS[:]
        try:
            chunk[cluster & _MASK] = count
        except OverflowError:
            if count < 0:
                raise
            # Two bytes suffice for nearly every image.
            chunk = self._chunks[number] = array("Q", chunk)
            chunk[cluster & _MASK] = min(count, (1 << 64) - 1)

    def add(self, cluster: int, delta: int) -> None:
        """Change a count; it must not become negative."""
        self[cluster] += delta

    def copy(self) -> SparseCounts:
        """Return an independent copy."""
        copied = SparseCounts()
        copied._chunks = {number: chunk[:] for number, chunk in self._chunks.items()}
        return copied

    def chunk(self, number: int) -> array[int]:
        """Return the counts ``number`` * `CHUNK` and following, not to be changed."""
        return self._chunks.get(number, _ZEROS)

    def chunks(self) -> Iterator[int]:
        """Yield the numbers of chunks that may have counts, in order."""
        yield from sorted(self._chunks)

    def used(self) -> Iterator[tuple[int, int]]:
        """Yield cluster and count of all counts that are not zero, in order."""
        for number in self.chunks():
            yield from self.between(number << _CHUNK_BITS, number + 1 << _CHUNK_BITS)

    def between(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield cluster and count of the counts in a range that are not zero, in order."""
        for number in range(start >> _CHUNK_BITS, (stop - 1 >> _CHUNK_BITS) + 1):
            base = number << _CHUNK_BITS
            chunk = self._chunks.get(number)
            if chunk is not None:
                first, last = max(0, start - base), min(CHUNK, stop - base)
                for index, count in enumerate(chunk[first:last], base + first):
                    if count:
                        yield index, count

    def end(self, stop: int) -> int:
        """Return one more than the number of the last cluster before ``stop`` with a count."""
        for number in sorted(self._chunks, reverse=True):
            base, chunk = number << _CHUNK_BITS, self._chunks[number]
            for index in range(min(CHUNK, stop - base) - 1, -1, -1):
                if chunk[index]:
                    return base + index + 1
        return 0
