"""What a damaged head says of itself: the candidates of C71 that need nothing else.

Half of a check that agrees is proof: 16 bytes are not met by chance, nor made by
anyone without the key. So a reader may go on with what is proved (C67). The
candidates that need the rest of the store are in `blobstore.container.repair.mending`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from blobstore.container.authentication import Authenticator
from formats.container.decoder import decode_header, locate_check
from formats.container.encoder import encode_free, encode_header
from formats.container.model import (
    COUNTER_FRAMING,
    DIGEST_FRAMING,
    DIGEST_SIZE,
    DIGESTS_STRUCT,
    FREE_STRUCT,
    HEAD_SIZE,
    IDENTIFIER,
    VERSION_STRUCT,
    Free,
)
from formats.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from formats.container.model import ContainerHeader

#: What one damaged unit of the ciphers in use garbles, in bytes.
CIPHER_BLOCK = 16

#: What a reader tries for all damaged heads of a store together: about a second.
READER_WORK = 1 << 17

# Bytes hashed at the price of one candidate.
_CANDIDATE_COST = 2048

# The most generations tried for a free item of which nothing else tells its own.
_MAX_GENERATIONS = 4096

_NO_CHECK = bytes(DIGEST_SIZE)

# Where the framing before the first field that changes ends, in any head.
_FRAMING_SIZE = 24

# Within how many bytes of its start a header copy has its identifier.
_IDENTIFIER_WITHIN = 64


@dataclass(slots=True)
class Patience:
    """How much may still be tried; damage must not make opening slow.

    Attributes:
        left: Candidates; None for as many as there are.
        tried: Offsets of heads that their own candidates did not prove.
        ends: Where the searches done so far ended (C43), by the offset that each began at.
    """

    left: int | None = READER_WORK
    tried: set[int] = field(default_factory=set)
    ends: dict[int, int] = field(default_factory=dict)

    def spend(self, hashed: int = 0) -> bool:
        """Count one candidate that takes so many bytes to hash; say whether it may be tried."""
        if self.left is None:
            return True
        self.left -= 1 + hashed // _CANDIDATE_COST
        return self.left >= 0


def mend_item(
    authenticator: Authenticator, offset: int, head: bytes, patience: Patience
) -> bytes | None:
    """Return the head of a damaged record or free item as it was, if that is proved.

    Its check may be damaged, one bit of it flipped, or a block of zeros lost.

    Args:
        authenticator: Of the store.
        offset: Of the item, in bytes.
        head: 512 bytes.
        patience: What may be tried; what is, is taken from it.
    """
    try:
        locate_check(head)
        within = HEAD_SIZE
    except FormatError:
        within = _FRAMING_SIZE  # a flip elsewhere does not make sense of the framing
    return first_proved(authenticator, offset, _alone(head, within), patience)


def mend_free(
    authenticator: Authenticator,
    offset: int,
    head: bytes,
    length: int,
    attested: Sequence[tuple[int, bytes]],
    patience: Patience,
) -> bytes | None:
    """Return the damaged head of a free item as it was, if half of its check is left.

    Args:
        authenticator: Of the store.
        offset: Of the item, in bytes.
        head: 512 bytes.
        length: Bytes that it may have had.
        attested: Generations and roots that it may have said, the highest first.
        patience: As in `mend_item`.
    """
    template = encode_free(Free(0, bytes(DIGEST_SIZE), length))
    start = locate_check(template) + DIGEST_SIZE - FREE_STRUCT.size
    _, generation, _, root, _, check = FREE_STRUCT.unpack_from(head, start)

    def saying(number: int, value: bytes) -> bytes:
        fields = (COUNTER_FRAMING, number, DIGEST_FRAMING, value, DIGEST_FRAMING, check)
        return template[:start] + FREE_STRUCT.pack(*fields) + template[start + FREE_STRUCT.size :]

    as_read = saying(generation, root)
    highest = attested[0][0] if attested else 0
    pairs = itertools.chain(
        ((number, root) for number, _ in attested),
        ((generation, value) for _, value in attested),
        attested,
        ((number, root) for number in range(highest, max(highest - _MAX_GENERATIONS, -1), -1)),
    )
    candidates = itertools.chain(
        (as_read,), (saying(*pair) for pair in pairs), changed_flipped(as_read, start)
    )
    return first_proved(authenticator, offset, candidates, patience)


def changed_flipped(head: bytes, start: int) -> Iterator[bytes]:
    """Yield ``head`` with each bit flipped of what may change from ``start`` on."""
    number = int.from_bytes(head, "big")
    stop = min(start + VERSION_STRUCT.size + DIGESTS_STRUCT.size, HEAD_SIZE)
    for bit in range(8 * (HEAD_SIZE - stop), 8 * (HEAD_SIZE - start)):
        yield (number ^ 1 << bit).to_bytes(HEAD_SIZE, "big")


def first_proved(
    authenticator: Authenticator, offset: int, candidates: Iterable[bytes], patience: Patience
) -> bytes | None:
    """Return the first candidate that half of the check in it agrees with, sealed."""
    for head in candidates:
        try:
            start = locate_check(head)
        except FormatError:
            continue
        if head[start : start + DIGEST_SIZE] == _NO_CHECK:
            continue  # as in a sector that was lost: it can prove nothing
        if not patience.spend():
            return None
        sealed = authenticator.with_check(offset, head, start)
        if _half_agrees(sealed, head, start):
            return sealed
    return None


def mend_header(
    head: bytes, offset: int, copy: int, other: ContainerHeader | None, patience: Patience
) -> ContainerHeader | None:
    """Return a damaged header copy as it was, if that is proved.

    Args:
        head: 512 bytes.
        offset: Of the copy, in bytes.
        copy: Which it is.
        other: The other copy, if it is sound: this one may have said the same.
        patience: As in `mend_item`.
    """
    if other is None and IDENTIFIER.encode() not in head[:_IDENTIFIER_WITHIN]:
        return None  # nothing speaks for a container at all
    first: tuple[bytes, ...] = ()
    if other is not None:
        same = encode_header(replace(other, copy=copy))
        start = decode_header(same, copy).check_start
        read = head[start : start + DIGEST_SIZE]
        first = (same[:start] + read + same[start + DIGEST_SIZE :],)
    for candidate in itertools.chain(first, _alone(head, HEAD_SIZE)):
        try:
            header, start, _ = decode_header(candidate, copy)
        except (FormatError, UnsupportedError):
            continue
        if copy and header.block_size != offset:
            continue
        if not patience.spend():
            return None
        if _half_agrees(
            Authenticator.of(header).with_check(offset, candidate, start), candidate, start
        ):
            return header
    return None


def _alone(head: bytes, within: int) -> Iterator[bytes]:
    """Yield a head as it reads, with each of its first bits flipped, and with lost zeros."""
    yield head  # the check itself is damaged
    number = int.from_bytes(head, "big")
    for bit in range(8 * (HEAD_SIZE - within), 8 * HEAD_SIZE):
        yield (number ^ 1 << bit).to_bytes(HEAD_SIZE, "big")
    if within == HEAD_SIZE:
        for start in range(0, HEAD_SIZE, CIPHER_BLOCK):
            yield head[:start] + bytes(CIPHER_BLOCK) + head[start + CIPHER_BLOCK :]


def _half_agrees(sealed: bytes, head: bytes, start: int) -> bool:
    half, end = start + DIGEST_SIZE // 2, start + DIGEST_SIZE
    return sealed[start:half] == head[start:half] or sealed[half:end] == head[half:end]
