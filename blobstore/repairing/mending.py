"""Mending a damaged head where its own check proves what it said: C71.

Flipped bits, one garbled block of a cipher, anything in what is known anyway:
as long as half of the check is left, what it agrees with is what was written.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from formats.container import (
    COUNTER_FRAMING,
    DIGEST_FRAMING,
    DIGEST_SIZE,
    DIGESTS_STRUCT,
    FREE_STRUCT,
    HEAD_SIZE,
    VERSION_FRAMINGS,
    VERSION_STRUCT,
    Free,
    State,
    Version,
)
from formats.container_decoder import locate_check
from formats.container_encoder import RecordFrame, encode_free
from formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from blobstore.authentication import Authenticator
    from blobstore.repairing.remains import Remains

#: What one damaged unit of the ciphers in use garbles, in bytes.
CIPHER_BLOCK = 16

# The most values tried of any field.
_MAX_GENERATIONS = 64
_MAX_SIZES = 32
_MAX_MEMBERS = 4
_MAX_ROOTS = 32


def mend_by_flips(authenticator: Authenticator, offset: int, head: bytes) -> bytes | None:
    """Return a damaged head as it was, if one bit, or a block of zeros, was lost.

    Args:
        authenticator: Of the store.
        offset: Of the item, in bytes.
        head: 512 bytes.
    """
    number = int.from_bytes(head, "big")
    candidates = itertools.chain(
        (head,),  # the check itself is damaged
        ((number ^ 1 << bit).to_bytes(HEAD_SIZE, "big") for bit in range(8 * HEAD_SIZE)),
        (
            head[:start] + bytes(CIPHER_BLOCK) + head[start + CIPHER_BLOCK :]
            for start in range(0, HEAD_SIZE, CIPHER_BLOCK)
        ),
    )
    return _first_proved(authenticator, offset, candidates)


def mend_free(
    authenticator: Authenticator,
    offset: int,
    head: bytes,
    length: int,
    attested: Sequence[tuple[int, bytes]],
) -> bytes | None:
    """Return the damaged head of a free item as it was, if half of its check is left.

    Args:
        authenticator: Of the store.
        offset: Of the item, in bytes.
        head: 512 bytes.
        length: Bytes that it hides.
        attested: Generations and roots that a head may have said.
    """
    template = encode_free(Free(0, bytes(DIGEST_SIZE), length))
    check_start = locate_check(template)
    start = check_start + DIGEST_SIZE - FREE_STRUCT.size
    _, generation, _, root, _, check = FREE_STRUCT.unpack_from(head, start)
    bases = [
        template[:start]
        + FREE_STRUCT.pack(COUNTER_FRAMING, number, DIGEST_FRAMING, value, DIGEST_FRAMING, check)
        + template[start + FREE_STRUCT.size :]
        for number, value in (
            (generation, root),
            *((number, root) for number, _ in attested),
            *((generation, value) for _, value in attested),
            *attested,
        )
    ]
    return _first_proved(authenticator, offset, itertools.chain(bases, _flips(bases[0], start)))


def mend_record(
    authenticator: Authenticator,
    remains: Remains,
    generations: Iterable[int],
    roots: Iterable[bytes],
) -> bytes | None:
    """Return the damaged head of a record as it was, if half of its check is left.

    Args:
        authenticator: Of the store.
        remains: Of the record.
        generations: That it may have, the likeliest first.
        roots: That it may have as root or prev.
    """
    head, frame = remains.head, remains.lost.frame
    if head is None:
        return None
    values = _Values(remains, frame, head, generations, roots)
    bases = values.heads()
    return _first_proved(
        authenticator, remains.lost.offset, itertools.chain(bases, _flips_of(values))
    )


class _Values:
    """Heads that a record may have had, of which a cipher's block was garbled."""

    def __init__(
        self,
        remains: Remains,
        frame: RecordFrame,
        head: bytes,
        generations: Iterable[int],
        roots: Iterable[bytes],
    ) -> None:
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

    def heads(self) -> Iterator[bytes]:
        """Yield heads: as read but for what is known, then with each block in doubt."""
        yield self._head(self._counters, self._mac, self._root, self._prev)
        first = self.start // CIPHER_BLOCK * CIPHER_BLOCK
        end = self.start + VERSION_STRUCT.size + DIGESTS_STRUCT.size
        for block in range(first, end, CIPHER_BLOCK):
            yield from self._with_block(block - self.start)

    def _with_block(self, position: int) -> Iterator[bytes]:
        """Yield heads whose fields are as read but in the block at ``position``."""
        garbled = [start < position + CIPHER_BLOCK and position < stop for start, stop in _FIELDS]
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
                self._frame.behind,
            )
        )


_STATES: tuple[int, ...] = tuple(State)

# Where the fields of a version lie in it, with their framing: state, generation,
# members, size, crc32; mac, root, prev.
_FIELDS = ((0, 3), (3, 13), (13, 19), (19, 29), (29, 35), (35, 69), (69, 103), (103, 137))


def _flips_of(values: _Values) -> Iterator[bytes]:
    return _flips(next(values.heads()), values.start)


def _flips(head: bytes, start: int) -> Iterator[bytes]:
    """Yield ``head`` with each bit flipped of what may change behind ``start``."""
    number = int.from_bytes(head, "big")
    stop = min(start + VERSION_STRUCT.size + DIGESTS_STRUCT.size, HEAD_SIZE)
    for bit in range(8 * (HEAD_SIZE - stop), 8 * (HEAD_SIZE - start)):
        yield (number ^ 1 << bit).to_bytes(HEAD_SIZE, "big")


def _first_proved(
    authenticator: Authenticator, offset: int, candidates: Iterable[bytes]
) -> bytes | None:
    """Return the first candidate that half of the check in it agrees with, sealed."""
    half = DIGEST_SIZE // 2
    for head in candidates:
        try:
            start = locate_check(head)
        except FormatError:
            continue
        sealed = authenticator.seal(offset, head, start)
        right, read = sealed[start : start + DIGEST_SIZE], head[start : start + DIGEST_SIZE]
        if right[:half] == read[:half] or right[half:] == read[half:]:
            return sealed
    return None
