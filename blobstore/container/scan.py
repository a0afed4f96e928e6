"""Reading a container's heads: rules C40, C41 and C43 of `spec/container.md`.

What comes out is what stands on the device, item by item. What it means after
a crash is `blobstore.container.directory`'s business.
"""

from __future__ import annotations

import hmac
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from blobstore.container.authentication import Authenticator
from blobstore.errors import CorruptStoreError
from formats.container.decoder import (
    Record,
    decode_header,
    decode_item,
    locate_check,
    require_supported,
)
from formats.container.der import read_framing
from formats.container.model import (
    BLOCK_SIZES,
    CONTAINER_TAG,
    FREE_TAG,
    HEAD_SIZE,
    IDENTIFIER,
    RECORD_TAG,
    State,
)
from formats.devices.device import is_blank, read_exactly
from formats.errors import (
    ContainerError,
    DeviceError,
    EmptyImageError,
    ForeignImageError,
    FormatError,
    TruncatedImageError,
    UnsupportedError,
)
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.container.proving import Patience
    from formats.container.decoder import Item
    from formats.container.model import ContainerHeader
    from formats.devices.device import BlockDevice

_log = LateLogger(__name__)

#: States of records with neither a blob nor fields that have lost their meaning.
_BLOBLESS = (State.UNWRITTEN, State.TOMBSTONE, State.IN_PLACE)

# Tags and lengths before the identifier in a header, and the identifier itself.
_START_SIZE = 64


class Damaged(NamedTuple):
    """An item whose head is damaged; ``length`` in bytes is what it hides."""

    length: int


class Scan(NamedTuple):
    """The heads of a container, as they are or as they are proved to have been (C71).

    Attributes:
        header: The copy that counts (C40).
        copies: Both copies as they stand; None where damaged.
        attesting: Both copies, also mended; None where nothing proves one.
        total: T, in bytes.
        writable: False where a feature unknown here forbids writing (C15).
        items: Byte offset and item, in order; mended ones among them.
        mended: The heads of these as they were, 512 bytes, by byte offset.
        patience: What is left of what may be tried to mend heads; None if it was
            not needed.
    """

    header: ContainerHeader
    copies: tuple[ContainerHeader | None, ContainerHeader | None]
    attesting: tuple[ContainerHeader | None, ContainerHeader | None]
    total: int
    writable: bool
    items: list[tuple[int, Item | Damaged]]
    mended: dict[int, bytes]
    patience: Patience | None


def scan(device: BlockDevice, *, quiet: bool = False, patience: Patience | None = None) -> Scan:
    """Read all heads of the container on ``device``, and mend what they prove themselves.

    Args:
        device: Not written to.
        quiet: Do not log damage; it is known.
        patience: What may be tried to mend heads; None for what a reader tries.

    Raises:
        EmptyImageError, ForeignImageError, TruncatedImageError: As named.
        ContainerError: No header copy is sound.
        CorruptStoreError: The header copies contradict each other.
        UnsupportedError: See C15.
        DeviceError: The header cannot be read.
    """
    copies, attesting = _read_headers(device, patience)
    header = max(filter(None, attesting), key=lambda copy: copy.sequence)
    writable = require_supported(header)
    total = attesting[0].total if attesting[0] else header.total
    _check_agreement(attesting)
    if total > device.size:
        raise TruncatedImageError(
            f"the container has {total} bytes, the device only {device.size}",
            offset=device.size,
            rule="C2",
        )
    found = Scan(header, copies, attesting, total, writable, [], {}, patience)
    return scan_items(device, found, quiet=quiet, patience=patience)


def read_header_copies(device: BlockDevice) -> tuple[_Copies, _Copies]:
    """Return both header copies as they stand, and as they are proved to have been.

    Whatever features they need; a damaged one is None, and at least one is not.

    Raises:
        EmptyImageError, ForeignImageError, ContainerError, UnsupportedError, DeviceError: As
            `scan`.
    """
    return _read_headers(device, None)


def scan_items(
    device: BlockDevice, found: Scan, *, quiet: bool = True, patience: Patience | None = None
) -> Scan:
    """Read the heads of all items again, below the header of an earlier scan.

    Args:
        device: Not written to; arguments and errors otherwise as of `scan`.
        found: The earlier scan, not modified.
        quiet: As in `scan`.
        patience: As in `scan`.
    """
    walker = _Walker(device, found.header, found.total, patience, quiet=quiet)
    items = list(walker.items())
    return found._replace(items=items, mended=walker.mended, patience=walker.patience)


def looks_like_container(device: BlockDevice) -> bool:
    """Say whether ``device`` starts as a container does, sound or not.

    Raises:
        DeviceError: It cannot be read.
    """
    start = read_exactly(device, 0, min(_START_SIZE, device.size))
    return start[:1] == bytes((CONTAINER_TAG,)) and IDENTIFIER.encode() in start


# -------------------------------------------------------------------- headers


_Copies = tuple["ContainerHeader | None", "ContainerHeader | None"]


def _read_headers(device: BlockDevice, patience: Patience | None) -> tuple[_Copies, _Copies]:
    """Return both header copies as they stand, and as they are proved to have been."""
    if device.size < 2 * BLOCK_SIZES[0]:
        if is_blank(device):
            raise EmptyImageError("there is no container: the image is empty")
        raise ForeignImageError(f"{device.size} bytes are too few for a container", rule="C2")
    problems: list[Exception] = []
    first = _read_header(device, 0, 0, problems)
    second = None
    sizes = [size for size in BLOCK_SIZES if size + HEAD_SIZE <= device.size]
    for block_size in (first.block_size,) if first else sizes:
        if block_size in sizes:
            found = _read_header(device, block_size, 1, problems)
            if found and found.block_size == block_size:
                second = found
                break
    if first and second:
        return (first, second), (first, second)
    from blobstore.container.proving import Patience, mend_header  # noqa: PLC0415  only where a head is damaged

    patience = patience or Patience()
    mended_first, mended_second = first, second
    with suppress(DeviceError):
        if first is None:
            head = read_exactly(device, 0, HEAD_SIZE)
            mended_first = mend_header(head, 0, 0, second, patience)
    for block_size in (mended_first.block_size,) if mended_first else sizes:
        if mended_second is None and block_size in sizes:
            with suppress(DeviceError):
                head = read_exactly(device, block_size, HEAD_SIZE)
                mended_second = mend_header(head, block_size, 1, first, patience)
    if mended_first or mended_second:
        return (first, second), (mended_first, mended_second)
    raise _nothing_sound(device, problems)


def _read_header(
    device: BlockDevice, offset: int, copy: int, problems: list[Exception]
) -> ContainerHeader | None:
    """Return a header copy if it is sound; note why if it is not."""
    try:
        head = read_exactly(device, offset, HEAD_SIZE)
        decoded = decode_header(head, copy)
    except (DeviceError, FormatError, UnsupportedError) as error:
        problems.append(error)
        return None
    if not Authenticator.of(decoded.header).is_sound(offset, head, decoded.check_start):
        problems.append(ContainerError("a header's check disagrees", offset=offset, rule="C21"))
        return None
    return decoded.header


def _nothing_sound(device: BlockDevice, problems: list[Exception]) -> Exception:
    """Say in the most useful way why no header copy can be used."""
    for kind in (UnsupportedError, DeviceError):
        for problem in problems:
            if isinstance(problem, kind):
                return problem
    if is_blank(device):
        return EmptyImageError("there is no container: the image holds only zeros")
    seconds = [
        read_exactly(device, size, _START_SIZE)
        for size in BLOCK_SIZES
        if size + HEAD_SIZE <= device.size
    ]
    if looks_like_container(device) or any(IDENTIFIER.encode() in start for start in seconds):
        return ContainerError("no copy of the container's header is sound", offset=0, rule="C40")
    return ForeignImageError(
        "there is no container here",
        offset=0,
        rule="C1",
        hint="if the image is a LUKS payload with a detached header, name the header",
    )


def _check_agreement(copies: tuple[ContainerHeader | None, ContainerHeader | None]) -> None:
    first, second = copies
    if first is None or second is None:
        return
    constants = [
        (h.store_id, h.block_size, h.authentication, h.key, h.encrypted) for h in (first, second)
    ]
    if constants[0] != constants[1]:
        raise CorruptStoreError("the header copies belong to different stores [C40]", offset=0)
    if second.sequence >= first.sequence and second.total != first.total:
        raise CorruptStoreError("the header copies differ in length [C40]", offset=0)
    older, newer = sorted((first, second), key=lambda header: header.sequence)
    if older.durable_generation > newer.durable_generation:
        raise CorruptStoreError("the older header copy has the higher D [C40]", offset=0)
    if second.sequence == first.sequence and (
        (second.durable_generation, second.root) != (first.durable_generation, first.root)
        or _features(first) != _features(second)
    ):
        raise CorruptStoreError("equally new header copies differ [C40]", offset=0)


def _features(header: ContainerHeader) -> tuple[int, int, int]:
    return header.incompatible, header.read_only_compatible, header.compatible


# ---------------------------------------------------------------------- items


class _Walker:
    """Steps from item to item, also over damaged heads."""

    def __init__(
        self,
        device: BlockDevice,
        header: ContainerHeader,
        total: int,
        patience: Patience | None,
        *,
        quiet: bool,
    ) -> None:
        self._device = device
        self._header = header
        self._authenticator = Authenticator.of(header)
        self._block_size = header.block_size
        self._total = total
        self.patience = patience
        self._quiet = quiet
        self.mended: dict[int, bytes] = {}

    def items(self) -> Iterator[tuple[int, Item | Damaged]]:
        offset = 2 * self._block_size
        before: Item | Damaged | None = None
        while offset < self._total:
            head = self._read_head(offset)
            before = self._sound(offset, head) or self._damaged(offset, head, before)
            yield offset, before
            offset += before.length

    def _damaged(
        self, offset: int, head: bytes | None, before: Item | Damaged | None
    ) -> Item | Damaged:
        """Return what a damaged head is proved to have been, or what it hides."""
        from blobstore.container.proving import Patience, mend_free, mend_item  # noqa: PLC0415  only where a head is damaged

        patience = self.patience = self.patience or Patience()
        if head is not None and offset not in patience.tried:
            patience.tried.add(offset)
            mended = mend_item(self._authenticator, offset, head, patience)
            if mended is None and not self._framed_end(offset, head):
                # Free space mostly reaches to the end: then nothing is searched for.
                attested = [(self._header.durable_generation, self._header.root)]
                length = self._total - offset
                mended = mend_free(self._authenticator, offset, head, length, attested, patience)
            item = self._sound(offset, mended)
            if mended and item:
                self.mended[offset] = mended
                return item
        length = self._hidden_end(offset, head, before, patience) - offset
        if not self._quiet:
            _log.error("the head at byte %d is damaged, hiding %d bytes", offset, length)
        return Damaged(length)

    def _read_head(self, offset: int) -> bytes | None:
        try:
            return read_exactly(self._device, offset, HEAD_SIZE)
        except DeviceError:
            return None  # one unreadable sector must not refuse the whole store

    def _sound(self, offset: int, head: bytes | None) -> Item | None:
        """Return the item if its head is sound (C21)."""
        if head is None:
            return None
        try:
            if not self._authenticator.is_sound(offset, head, locate_check(head)):
                return None
            item = decode_item(head, self._block_size)
        except FormatError:
            return None
        if isinstance(item, Record) and item.version.state in _BLOBLESS:
            # No blob will ever be read whose mac would tell.
            mac = self._authenticator.mac(item.frame.mac_input(item.version))
            if not hmac.compare_digest(mac, item.version.mac):
                return None
        return item if offset + item.length <= self._total else None

    def _hidden_end(
        self, offset: int, head: bytes | None, before: Item | Damaged | None, patience: Patience
    ) -> int:
        """Return where the item with the damaged head at ``offset`` ends (C43)."""
        if head is not None:
            end = self._framed_end(offset, head)
            if end == self._total or (end and self._sound(end, self._read_head(end))):
                return end
        if isinstance(before, Record) and (before.identity.copy, before.identity.copies) == (0, 2):
            return min(offset + before.length, self._total)
        if offset not in patience.ends:
            patience.ends[offset] = self._next_sound(offset + self._block_size)
        return patience.ends[offset]

    def _next_sound(self, start: int) -> int:
        from blobstore.container.search import likely_heads  # noqa: PLC0415  only where a head is damaged

        for offset, head in likely_heads(self._device, start, self._total, self._block_size):
            if self._sound(offset, head):
                return offset
        return self._total

    def _framed_end(self, offset: int, head: bytes) -> int:
        """Return the end by the item's own framing, 0 where that makes no sense."""
        try:
            tag, start, size = read_framing(head, 0)
        except FormatError:
            return 0
        end = offset + start + size
        fits = tag in (RECORD_TAG, FREE_TAG) and end % self._block_size == 0
        return end if fits and end <= self._total else 0
