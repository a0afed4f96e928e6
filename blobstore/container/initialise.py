"""Making a container: the arithmetic of sizes, and writing it (C2, C8, C59)."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from blobstore.container.authentication import Authenticator
from blobstore.container.durable import DurableWriter, Span
from blobstore.container.headers import header_span
from blobstore.errors import NoSpaceError
from formats.container.encoder import record_frame
from formats.container.model import (
    BLOCK_SIZES,
    DEFAULT_BLOCK_SIZE,
    ID_SIZE,
    KEY_SIZE,
    MAX_NAME_SIZE,
    MAX_SECTION_SIZE,
    MAX_TYPE_SIZE,
    NEVER_WRITTEN,
    Authentication,
    ContainerHeader,
    Free,
    Identity,
    Kind,
    State,
    Version,
    record_length,
    validate_label,
)
from formats.devices.device import SpaceDevice
from formats.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from formats.devices.device import BlockDevice, ReadableBuffer

_UNKNOWN = bytes(32)


@dataclass(frozen=True, slots=True)
class SectionSpec:
    """A section to be made.

    Attributes:
        name: See C9.
        max_size: Worst-case size of its blob, in bytes.
        kind: Blob or window.
        copies: 2, or 1 for content that is only read.
        type: What the blob is, for tools.
        content: Its first blob; None leaves it unwritten.
    """

    name: str
    max_size: int
    kind: Kind = Kind.BLOB
    copies: int = 2
    type: str = ""
    content: ReadableBuffer | None = None

    def __post_init__(self) -> None:
        validate_label(self.name, "name", lowest=1, highest=MAX_NAME_SIZE)
        validate_label(self.type, "type", lowest=0, highest=MAX_TYPE_SIZE)
        if not 0 <= self.max_size <= MAX_SECTION_SIZE:
            raise ArgumentError(f"section {self.name!r} cannot have {self.max_size} bytes")
        if self.copies not in (1, 2):
            raise ArgumentError(f"section {self.name!r}: copies is 1 or 2, not {self.copies}")
        if self.content is not None and len(self.content) > self.max_size:
            raise ArgumentError(
                f"section {self.name!r}: {len(self.content)} bytes of content are more than "
                f"its worst case of {self.max_size}"
            )


def container_size(
    specs: Iterable[SectionSpec], *, block_size: int = DEFAULT_BLOCK_SIZE, free: int = 0
) -> int:
    """Return the bytes that a container of these sections takes.

    Args:
        specs: The sections.
        block_size: B, in bytes.
        free: Bytes of free space wanted besides, rounded up to blocks.
    """
    sections = sum(record_length(spec.max_size, block_size) * spec.copies for spec in specs)
    return 2 * block_size + sections + -(-free // block_size) * block_size


def initialise(
    device: BlockDevice,
    specs: Sequence[SectionSpec],
    *,
    encrypted: bool,
    block_size: int = DEFAULT_BLOCK_SIZE,
    store_id: bytes | None = None,
    key: bytes | None = None,
    random: Callable[[int], bytes] | None = None,
) -> None:
    """Write a new container over the whole of ``device`` (C59).

    Until it is complete there is no container; then the device holds the new
    one, closed. What the device held before is lost.

    Args:
        device: At least `container_size` bytes; what is more becomes free.
        specs: The sections, in the order they are to have.
        encrypted: Whether the device is encrypted below; then heads and blobs
            are authenticated by a random key, else by plain hashes (C25).
        block_size: B, in bytes, at least the device's own.
        store_id: 16 bytes; random if None.
        key: 32 bytes; random if None.
        random: Returns so many random bytes: the ids of sections, and ``store_id``
            and ``key`` if they are None; by default the operating system's.

    Raises:
        ValueError: Two sections have one name, or a size or name breaks a rule.
        NoSpaceError: The device is too small.
        DeviceFullError: It is a file that cannot get as much space; nothing was written.
        DeviceError: Writing failed; there is no container, or a complete one.
    """
    if block_size not in BLOCK_SIZES or block_size < device.block_size:
        raise ArgumentError(
            f"block size {block_size} is not a power of two from "
            f"{max(BLOCK_SIZES[0], device.block_size)} to {BLOCK_SIZES[-1]}"
        )
    names = [spec.name for spec in specs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArgumentError(f"two sections have the name {twice!r}")
    needed = container_size(specs, block_size=block_size)
    total = device.size // block_size * block_size
    if needed > total:
        raise NoSpaceError(f"the sections need {needed} bytes; the device has {device.size}")
    draw = random or os.urandom
    algorithm = Authentication.HMAC_SHA256 if encrypted else Authentication.SHA256
    header = ContainerHeader(
        copy=0,
        block_size=block_size,
        store_id=store_id or draw(ID_SIZE),
        encrypted=encrypted,
        authentication=algorithm,
        key=(key or draw(KEY_SIZE)) if encrypted else b"",
        sequence=1,
        total=total,
        durable_generation=1,
        root=_UNKNOWN,
    )
    authenticator = Authenticator.of(header)
    items = _Items(authenticator, specs, block_size, total, draw)
    header = replace(header, root=items.root)
    writer = DurableWriter(device)
    if isinstance(device, SpaceDevice):
        device.reserve(0, needed)  # not found out when everything is full
    # Wherever a reader looks for a header copy, there may be an old one.
    writer.write([Span(0, (), min(BLOCK_SIZES[-1] + block_size, total))])
    writer.write(list(items.spans()))
    for copy in (1, 0):
        writer.write([header_span(authenticator, replace(header, copy=copy))])


class _Items:
    """The items of a new container, all of generation 1 or void."""

    def __init__(
        self,
        authenticator: Authenticator,
        specs: Sequence[SectionSpec],
        block_size: int,
        total: int,
        random: Callable[[int], bytes],
    ) -> None:
        self._authenticator = authenticator
        self._block_size = block_size
        self._total = total
        before = authenticator.root(0)
        state = 0
        self._sections: list[tuple[Identity, Version, ReadableBuffer]] = []
        for spec in specs:
            identity = Identity(
                random(ID_SIZE),
                0,
                spec.copies,
                spec.kind,
                spec.max_size,
                spec.type,
                spec.name,
            )
            version, blob, member = self._first_version(identity, spec.content, before)
            state += member
            self._sections.append((identity, version, blob))
        self.root = authenticator.root(state)

    def _first_version(
        self, identity: Identity, content: ReadableBuffer | None, before: bytes
    ) -> tuple[Version, ReadableBuffer, int]:
        state = State.UNWRITTEN if content is None else State.LIVE
        blob = content if content is not None else b""
        crc32 = zlib.crc32(blob)
        version = Version(state, 1, 0, len(blob), crc32, _UNKNOWN, _UNKNOWN, before)
        meta = record_frame(identity, self._block_size).mac_input(version)
        mac = self._authenticator.mac(meta, (blob,))
        return version._replace(mac=mac), blob, self._authenticator.member(meta, mac)

    def spans(self) -> Iterator[Span]:
        offset = 2 * self._block_size
        for identity, version, blob in self._sections:
            rooted = version._replace(root=self.root)
            for copy in range(identity.copies):
                placed = identity._replace(copy=copy)
                head = self._authenticator.record_head(
                    offset,
                    record_frame(placed, self._block_size),
                    NEVER_WRITTEN if copy else rooted,
                )
                length = record_length(placed.max_size, self._block_size)
                yield Span(offset, (head, b"" if copy else blob), length)
                offset += length
        if offset < self._total:
            head = self._authenticator.free_head(offset, Free(1, self.root, self._total - offset))
            yield Span(offset, (head,), self._block_size)
