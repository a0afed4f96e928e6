"""Mending the head of a record by its check and by what else is known of it: C71.

One garbled block of a cipher, anything in what the other copy knows as well: as
long as half of the check is left, what it agrees with is what was written. What
a head proves without the rest of the store is in `blobstore.container.proving`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from blobstore.container.proving import CIPHER_BLOCK, changed_flipped, first_proved
from formats.container.model import (
    DIGEST_FRAMING,
    DIGEST_SIZE,
    DIGESTS_STRUCT,
    VERSION_FRAMINGS,
    VERSION_STRUCT,
    State,
    Version,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from blobstore.container.authentication import Authenticator
    from blobstore.container.proving import Patience
    from blobstore.container.repair.remains import Remains
    from formats.container.encoder import RecordFrame

# The most values tried of any field.
_MAX_GENERATIONS = 64
_MAX_SIZES = 32
_MAX_MEMBERS = 4
_MAX_ROOTS = 32


def mend_record(
    authenticator: Authenticator,
    remains: Remains,
    generations: Iterable[int],
    roots: Iterable[bytes],
    patience: Patience,
) -> bytes | None:
    """Return the damaged head of a record as it was, if half of its check is left.

    Args:
        authenticator: Of the store.
        remains: Of the record.
        generations: That it may have, the likeliest first.
        roots: That it may have as root or prev.
        patience: What may be tried; what is, is taken from it.
    """
    head, frame = remains.head, remains.lost.frame
    if head is None:
        return None
    values = _Values(remains, frame, head, generations, roots, patience)
    candidates = itertools.chain(
        (values.as_read(),),
        changed_flipped(values.as_read(), values.start),
        values.with_a_block_in_doubt(),
    )
    return first_proved(authenticator, remains.lost.offset, candidates, patience)


class _Values:
    """Heads that a record may have had, of which a cipher's block was garbled."""

    def __init__(
        self,
        remains: Remains,
        frame: RecordFrame,
        head: bytes,
        generations: Iterable[int],
        roots: Iterable[bytes],
        patience: Patience,
    ) -> None:
        self._patience = patience
        self._remains = remains
        self._room = remains.lost.identity.max_size
        self._frame = frame
        self.start = len(frame.before)
        self._counters: tuple[int, ...] = VERSION_STRUCT.unpack_from(head, self.start)[1::2]
        digests: tuple[bytes, ...] = DIGESTS_STRUCT.unpack_from(
            head, self.start + VERSION_STRUCT.size
        )[1::2]
        self._mac, self._root, self._prev, self._check = digests
        self._generations = list(itertools.islice(generations, _MAX_GENERATIONS))
        self._roots = list(itertools.islice(roots, _MAX_ROOTS))

    def as_read(self) -> bytes:
        """Return the head as it reads but for what is known."""
        return self._head(self._counters, self._mac, self._root, self._prev)

    def with_a_block_in_doubt(self) -> Iterator[bytes]:
        """Yield heads of which each block of a cipher is in doubt, one after the other."""
        first = self.start // CIPHER_BLOCK * CIPHER_BLOCK
        end = self.start + VERSION_STRUCT.size + DIGESTS_STRUCT.size
        for block in range(first, end, CIPHER_BLOCK):
            yield from self._with_block(block - self.start)

    def _with_block(self, position: int) -> Iterator[bytes]:
        """Yield heads whose fields are as read but in the block at ``position``."""
        # The blob is read for what depends on it: size, crc32 and mac.
        garbled = [start < position + CIPHER_BLOCK and position < stop for start, stop in _FIELDS]
        if any(garbled[3:6]) and not self._patience.spend(self._room):
            return
        choices = [
            self._choices(number) if garbled[number] else (self._counters[number],)
            for number in range(4)
        ]
        for state, generation, members, size in itertools.product(*choices):
            if size > self._room or state not in _STATES:
                continue
            crc32 = self._counters[4]
            if garbled[4]:
                crc32 = self._remains.crc32(size) if state == State.LIVE else 0
            counters = (state, generation, members, size, crc32)
            if any(garbled[4:6]) and not self._patience.spend(size):
                return
            macs = (self._mac_of(counters), bytes(DIGEST_SIZE)) if garbled[5] else (self._mac,)
            roots = self._roots if garbled[6] else (self._root,)
            prevs = self._roots if garbled[7] else (self._prev,)
            for mac, root, prev in itertools.product(macs, roots, prevs):
                yield self._head(counters, mac, root, prev)

    def _choices(self, number: int) -> Sequence[int]:
        if number == 0:
            return _STATES
        if number == 1:
            return self._generations
        if number == 2:
            return range(_MAX_MEMBERS + 1)
        return [0, *itertools.islice(self._remains.likely_sizes(), _MAX_SIZES)]

    def _mac_of(self, counters: tuple[int, ...]) -> bytes:
        state, generation, members, size, crc32 = counters
        version = Version(State(state), generation, members, size, crc32, b"", b"", b"")
        return self._remains.mac(self._frame, version)

    def _head(self, counters: tuple[int, ...], mac: bytes, root: bytes, prev: bytes) -> bytes:
        version = itertools.chain.from_iterable(zip(VERSION_FRAMINGS, counters, strict=True))
        digests = itertools.chain.from_iterable(
            (DIGEST_FRAMING, digest) for digest in (mac, root, prev, self._check)
        )
        return b"".join(
            (
                self._frame.before,
                VERSION_STRUCT.pack(*version),
                DIGESTS_STRUCT.pack(*digests),
                self._frame.after,
            )
        )


_STATES: tuple[int, ...] = tuple(State)

# Where the fields of a version lie in it, with their framing: state, generation,
# members, size, crc32; mac, root, prev.
_FIELDS = ((0, 3), (3, 13), (13, 19), (19, 29), (29, 35), (35, 69), (69, 103), (103, 137))
