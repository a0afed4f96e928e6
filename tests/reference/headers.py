"""The header copies, authentication and what a container can fail with: C15, C20, C21, C40.

Part of the reader in `tests.reference.reader`, and like it written from `spec/` alone.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat import asn1

from tests.reference.syntax import HEAD, Header, Item, enumerated, frame, number

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_SIZES = tuple(1 << power for power in range(9, 17))
SHA256, HMAC_SHA256 = 0, 1


class ContainerError(Exception):
    """The container as a whole is not read."""


class NoContainer(ContainerError):  # noqa: N818  # it need not be an error
    """Neither header copy is sound."""


class Unsupported(ContainerError):  # noqa: N818
    """A later version made this (C15)."""


class Corrupt(ContainerError):  # noqa: N818
    """The store contradicts itself."""


@dataclass(frozen=True)
class Authentication:
    """C20: how things are authenticated in one store."""

    algorithm: int
    key: bytes
    store_id: bytes

    def digest(self, label: bytes, message: bytes) -> bytes:
        """A(label, storeId, message)."""
        message = label + self.store_id + message
        if self.algorithm == HMAC_SHA256:
            return hmac.digest(self.key, message, "sha256")
        return hashlib.sha256(message).digest()

    def checks(self, head: bytes, offset: int, end: int) -> bool:
        """C21; `check` ends at ``end`` and counts as zero in what it covers."""
        blank = head[: end - 32] + bytes(32) + head[end:]
        expected = self.digest(b"blobstore/1 head", offset.to_bytes(8) + blank)
        return hmac.compare_digest(expected, head[end - 32 : end])

    def sealed(self, head: bytes, offset: int, end: int) -> bytes:
        """Return a head with the right `check`."""
        blank = head[: end - 32] + bytes(32) + head[end:]
        check = self.digest(b"blobstore/1 head", offset.to_bytes(8) + blank)
        return head[: end - 32] + check + head[end:]

    def half_checks(self, head: bytes, offset: int, end: int) -> bool:
        """C71: half of `check` agrees."""
        read = head[end - 32 : end]
        if read == bytes(32):
            return False  # the rest of a lost sector, which saves time
        right = self.sealed(head, offset, end)[end - 32 : end]
        return right[:16] == read[:16] or right[16:] == read[16:]


def candidates(head: bytes) -> Iterator[bytes]:
    """C67: what every reader tries for a damaged head."""
    yield head
    value = int.from_bytes(head)
    for bit in range(8 * len(head)):
        yield (value ^ 1 << bit).to_bytes(len(head))


@dataclass(frozen=True)
class FoundHeader:
    """A sound header copy."""

    header: Header
    authentication: Authentication

    @property
    def sequence(self) -> int:
        return number(self.header.sequence)

    @property
    def total(self) -> int:
        return number(self.header.total)

    @property
    def durable(self) -> int:
        return number(self.header.durable)

    @property
    def identity(self) -> tuple[object, ...]:
        """What two copies always share (C40)."""
        return self.header.block_size, self.header.encrypted, self.authentication

    @property
    def content(self) -> dict[str, object]:
        """What two copies with one sequence share (C40)."""
        own = ("copy", "check", "padding", "authentication")
        return {name: value for name, value in vars(self.header).items() if name not in own}


class Later(Exception):  # noqa: N818
    """C15: a header copy of a version or an authentication that cannot be checked."""


def read_header(content: bytes, offset: int) -> FoundHeader | None:
    """Return the header copy at an offset, 0 or a block size, if it is sound (C21)."""
    return sound_header(bytes(content[offset : offset + HEAD]), offset)


def mend_header(content: bytes, offset: int) -> FoundHeader | None:
    """C67: return a damaged header copy if half of its check proves it."""
    head = bytes(content[offset : offset + HEAD])
    for candidate in candidates(head):
        try:
            found = sound_header(candidate, offset, half=True)
        except Later:
            continue
        if found:
            return found
    return None


def sound_header(head: bytes, offset: int, *, half: bool = False) -> FoundHeader | None:
    try:
        tag, begin, end = (0x73, 0, None) if offset else frame(head, 0)
        version = read_version(head, begin) if tag == 0x73 else None  # C1
        if version != 1:
            if version is not None:
                raise Later(f"version {version}")  # C15
            return None
        item = Item.parse(head, begin)
        header = asn1.decode_der(Header, item.der)
        algorithm = enumerated(header.authentication)
    except ValueError:
        return None
    if algorithm not in (SHA256, HMAC_SHA256):
        raise Later(f"authentication {algorithm}")
    block, total = header.block_size, number(header.total)
    authentication = Authentication(algorithm, header.key, header.store_id)
    sound = (
        (header.copy == bool(offset) and item.end == block)  # C3
        and (block in BLOCK_SIZES and offset in (0, block))  # C40
        and (total % block == 0 and 2 * block <= total < 1 << 63)  # C2
        and (bool(offset) or end == total)  # C21
        and len(header.key) == 32 * algorithm  # C20
        and (authentication.half_checks if half else authentication.checks)(
            head, offset, item.last[0]
        )
    )
    return FoundHeader(header, authentication) if sound else None


def read_version(head: bytes, begin: int) -> int | None:
    """Return the version of a header copy, which is told by what stands before it (C15)."""
    tag, first, _ = frame(head, begin)
    text, start, end = frame(head, first)
    number_tag, at, stop = frame(head, end)
    if (tag, text, head[start:end], number_tag) != (0xA0, 0x0C, b"blobstore", 0x02):
        return None
    octets = head[at:stop]
    minimal = octets and not (len(octets) > 1 and octets[0] in (0, 255))
    return number(octets) if minimal and octets[0] < 128 else None


def read_headers(content: bytes) -> list[FoundHeader]:
    """C40: return the sound header copies, one or two, in their order."""
    later: list[Later] = []

    def attempt(offset: int) -> FoundHeader | None:
        try:
            return read_header(content, offset)
        except Later as error:
            later.append(error)
            return None

    first = attempt(0)
    tries = [first.header.block_size] if first else BLOCK_SIZES
    second = next(filter(None, map(attempt, tries)), None)
    if first is None and (second or b"blobstore" in content[:64]):  # C67
        first = mend_header(content, 0)
    if second is None:
        for block in [first.header.block_size] if first else BLOCK_SIZES:
            if second is None and (first or b"blobstore" in content[block : block + 64]):
                second = mend_header(content, block)
    copies = [copy for copy in (first, second) if copy]
    if not copies:
        if later:
            raise Unsupported(f"C15: {later[0]}")
        raise NoContainer("C40: no sound header copy")
    if number(max(copies, key=lambda copy: copy.sequence).header.incompatible):
        raise Unsupported("C15: an incompatible feature")  # rather than corrupt
    if first and second:
        require_agreement(first, second)
    if copies[0].total > len(content):
        raise Corrupt("C2: truncated")
    return copies


def require_agreement(first: FoundHeader, second: FoundHeader) -> None:
    """C40, its last sentence."""
    if first.identity != second.identity:
        raise Corrupt("C40: the header copies are of different stores")
    if second.sequence >= first.sequence and first.total != second.total:
        raise Corrupt("C40: the totals differ")
    if second.sequence == first.sequence and first.content != second.content:
        raise Corrupt("C40: header copies of one sequence differ")
    older, newer = sorted((first, second), key=lambda copy: copy.sequence)
    if older.durable > newer.durable:
        raise Corrupt("C40: the older header copy has the higher durable")
