"""An unlocked volume: its payload as a BlockDevice."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from formats.devices.device import Device
from formats.errors import ArgumentError
from formats.process import Owned, Owner
from luks.errors import ReadOnlyError, UnsupportedError
from luks.header.key_digests import key_digests, volume_key_sizes
from luks.header.policy import (
    DEFAULT_POLICY,
    check_openable,
    check_payload_place,
    check_requirements,
)
from luks.keys.keyslots import VolumeKey
from luks.keys.reencryption import VolumeKeys
from luks.payload.segment import CryptSegment, open_segment, segment_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from formats.devices.device import BlockDevice, ReadableBuffer, WritableBuffer
    from luks.header.policy import Policy
    from luks.model import Header


class Volume(Owned, Device):
    """The decrypted payload of a LUKS volume, as a `BlockDevice`.

    Any range of bytes can be read and written, from several threads at once; a
    write that ends inside sectors reads those first. In a child of the process that
    opened it everything but `close` raises `ForkedProcessError`: it would wait for
    locks that no thread there releases.

    Attributes:
        header: The header it was opened with.
        keyslot: Number of the keyslot that opened it, or None.
        read_only: Whether writing is refused.
    """

    def __init__(
        self,
        device: BlockDevice,
        header: Header,
        key: VolumeKey | VolumeKeys,
        *,
        read_only: bool = True,
        policy: Policy = DEFAULT_POLICY,
        owned: tuple[BlockDevice, ...] = (),
    ) -> None:
        """Open the payload on ``device`` with a loaded header and its confirmed key.

        Args:
            device: Holds the payload.
            header: Its header, however it was loaded.
            key: From `luks.unlock`, `luks.unlock_all` or `luks.verify_volume_key` with that
                header; `close` wipes it.
            read_only: Permit no writing.
            policy: What it must be.
            owned: Devices that `close` closes.

        Raises:
            TruncatedImageError: The device ends before the payload.
            LuksHeaderError: The payload would overlap the header itself (L52).
            PolicyError, UnsupportedError: As `luks.unlock`.
            ArgumentError: The key is not as long as the header says (L65), or one is missing.
        """
        policy.check_header(header)
        check_openable(header, allow_unencrypted=policy.allow_unencrypted)
        check_payload_place(device, header)
        keys = VolumeKeys.only(header, key) if isinstance(key, VolumeKey) else key
        for number in key_digests(header):
            if number not in keys.by_digest:
                raise ArgumentError(f"the key of digest {number} is missing [L180]")
            sizes = volume_key_sizes(header, header.digests[number])
            size = len(keys.by_digest[number].key)
            if sizes and size not in sizes:
                raise ArgumentError(f"a key of {size} bytes is not of this header [L65]")
        self.header = header
        self.keyslot: int | None = keys.keyslot
        self.read_only = read_only
        self._keys = keys
        self._owned = owned
        self._device = device
        digest_of = header.segment_digests
        self._segments = tuple(
            open_segment(
                device,
                segment,
                keys.by_digest[digest_of[number]].key if number in digest_of else None,
            )
            for number, segment in sorted(header.segments.items())
            if not segment.is_backup
        )
        self._starts = _starts(self._segments)
        self._owner = Owner("the volume")
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes of the payload, in whole sectors."""
        return self._starts[-1]

    @property
    def block_size(self) -> int:
        """Bytes of a sector; the largest, if segments differ."""
        return max(segment.block_size for segment in self._segments)

    def over(self, device: BlockDevice, *, read_only: bool = True) -> Volume:
        """Return the payload of another image as this header and key open it.

        Args:
            device: Holds the payload where this header says; stays the caller's.
            read_only: Permit no writing.

        Raises:
            TruncatedImageError: The device ends before the payload.
        """
        self._check_open()
        return Volume(device, self.header, self._keys.copy(), read_only=read_only)

    @property
    def volume_key_size(self) -> int:
        """Bytes of the volume key; during a re-encryption, of the old one if there is one."""
        return self._keys.first_size

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self._check_open()
        self._check_range(offset, len(buffer))
        view = memoryview(buffer)
        for segment, at, first, last in self._pieces(offset, len(view)):
            segment.read_into(at, view[first:last])

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._check_open()
        self._check_range(offset, len(data))
        self._check_writable()
        view = memoryview(data)
        for segment, at, first, last in self._pieces(offset, len(view)):
            segment.write(at, view[first:last])

    def write_durably(self, offset: int, data: ReadableBuffer, /) -> None:
        self._check_open()
        self._check_range(offset, len(data))
        self._check_writable()
        view = memoryview(data)
        pieces = list(self._pieces(offset, len(view)))
        if len(pieces) != 1:
            super().write_durably(offset, data)
            return
        ((segment, at, _, _),) = pieces
        segment.write_durably(at, view)

    def flush(self) -> None:
        self._check_open()
        self._device.flush()

    def discard(self, offset: int, size: int, /) -> None:
        """Give the space of a range back to the image, as a file system's trim asks.

        Only sectors that lie wholly in the range are given back. They do **not**
        read as zeros afterwards but as noise: the image has zeros there, and these
        are decrypted. So use it for what will not be read before it is written.

        It shows which sectors are in use to anyone who sees the image, which is why
        dm-crypt discards only when it is told to (``allow-discards``); here, calling
        it is telling it so. Callers who pass on the wishes of a guest should look
        for that flag in `Header.flags`.

        Args:
            offset: Byte offset in the payload.
            size: Bytes.

        Raises:
            ReadOnlyError: The volume is open for reading only.
            UnsupportedError: The image's device or file system cannot; nothing
                changed.
            DeviceError: It failed.
        """
        self._check_open()
        self._check_range(offset, size)
        self._check_writable()
        for segment, at, first, last in self._pieces(offset, size):
            segment.discard(at, last - first)

    def backed_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield what in a range of the payload has space of its own in the image."""
        self._check_open()
        self._check_range(offset, size)
        for segment, at, first, last in self._pieces(offset, size):
            base = offset + first - at
            for start, length in segment.backed_ranges(at, last - first):
                yield base + start, length

    def reserve(self, offset: int, size: int, /) -> None:
        """Have the image find the space for a range; see `formats.devices.device.SpaceDevice`."""
        self._check_open()
        self._check_range(offset, size)
        self._check_writable()
        for segment, at, first, last in self._pieces(offset, size):
            segment.reserve(at, last - first)

    def resize(self, size: int, /) -> None:
        """Resize the image so that the payload has ``size`` bytes.

        A file grows or shrinks; what is cut off is lost, and what is new reads as
        noise until it is written. The header does not change: its last segment
        takes what the image has. The range that is cut off must not be in use.

        Args:
            size: Bytes, whole sectors, and more than segments of fixed size take.

        Raises:
            ReadOnlyError: The volume is open for reading only.
            UnsupportedError: The header fixes the size, or the device has a fixed
                one.
            UnfinishedReencryptionError: The volume is being re-encrypted (L187).
            DeviceFullError, DeviceError: It failed; the size is what it was.
            ValueError: ``size`` is impossible.

        Source: LUKS2 On-Disk Format Specification 1.1, section 3.3: segments of
        dynamic size.
        """
        self._check_open()
        self._check_writable()
        check_requirements(self.header)
        if self.header.data_segments[-1].size is not None:
            raise UnsupportedError(
                "the header fixes the size of the payload [L73]", feature="resize"
            )
        last, fixed = self._segments[-1], self._starts[-2]
        if size <= fixed or (size - fixed) % last.block_size:
            raise ValueError(
                f"the payload cannot have {size} bytes: it is whole sectors of"
                f" {last.block_size} bytes, more than {fixed}"
            )
        last.resize(size - fixed)
        self._starts = _starts(self._segments)

    def follow_image(self) -> None:
        """Take the size that the image has now, if another program has resized it.

        Raises:
            TruncatedImageError: The image ends before the payload.
        """
        self._check_open()
        last = self.header.data_segments[-1]
        if last.size is None:
            self._segments[-1].follow(segment_size(self._device, last))
            self._starts = _starts(self._segments)

    def close(self) -> None:
        """Wipe the volume key and close what `luks.open` opened; twice is fine.

        In a child only its copy of the key is wiped.
        """
        if not self._closed:
            self._closed = True
            if self._owner.is_other:
                self._keys.wipe()
                return
            for segment in self._segments:
                segment.close()
            self._keys.wipe()
            for device in self._owned:
                device.close()

    def _pieces(self, offset: int, size: int) -> Iterable[tuple[CryptSegment, int, int, int]]:
        """Cut a range at segment bounds: segment, offset in it, bounds in the range."""
        if len(self._segments) == 1:  # as nearly everywhere
            return ((self._segments[0], offset, 0, size),) if size else ()
        return self._cut(offset, size)

    def _cut(self, offset: int, size: int) -> Iterator[tuple[CryptSegment, int, int, int]]:
        at, end = offset, offset + size
        while at < end:
            index = bisect_right(self._starts, at) - 1
            stop = min(end, self._starts[index + 1])
            yield self._segments[index], at - self._starts[index], at - offset, stop - offset
            at = stop

    def _check_open(self) -> None:
        self._owner.require()
        if self._closed:
            raise ValueError("the volume is closed")

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnlyError("the volume is open for reading only")


def _starts(segments: Iterable[CryptSegment]) -> tuple[int, ...]:
    """Return where each segment starts in the payload, and where the last ends."""
    return (0, *accumulate(segment.size for segment in segments))
