"""The disk in a qcow2 image, as a BlockDevice.

It is one class around one set of tables and one lock, which is why the module is longer
than most; what it asks of them is in modules of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from formats.devices.device import Device
from formats.devices.file import FileDevice
from formats.errors import DeviceError, ReadOnlyError, StorageError, UnsupportedError
from formats.process import Owned, OwnedLock, Owner
from formats.qcow2.bitmaps import invalidate_bitmaps
from formats.qcow2.content import SECTOR, ClusterCipher
from formats.qcow2.header import CRYPT_NONE, MAX_L1_SIZE, MAX_SIZE, l1_entries, read_header
from formats.qcow2.mapping import Extent, extents, joined, merged
from formats.qcow2.metadata import Metadata
from formats.qcow2.ranges import data_of
from formats.qcow2.resizing import grow, shrink
from formats.qcow2.tables import EntryKind
from formats.qcow2.writing import WritableContent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from formats.devices.device import BlockDevice, ReadableBuffer, WritableBuffer
    from formats.qcow2.header import Qcow2Header
    from formats.qcow2.host import Host

__all__ = ["ClusterCipher", "EntryKind", "Extent", "Qcow2Device"]

_Result = TypeVar("_Result")

#: Clusters of the disk whose extents are looked up while the lock is held once.
_LOOK_AHEAD: Final = 1 << 16


class Qcow2Device(Owned, Device):
    """The disk in a qcow2 image: its active state, or that of a snapshot.

    Reading and writing are safe from several threads at once. Writes are durable
    when `flush` returns; before that a crash leaves the image sound, and each
    cluster with its old or its new content (spec/qcow2.md, Q10 to Q16). After an
    interrupted change the tables in memory are in doubt (Q26): the next change reads the
    image again, or is refused if that would lose earlier writes that are not durable.
    In a child of the process that opened it, everything except `close` raises
    `ForkedProcessError`.

    `formats.qcow2.opening` makes them.
    """

    def __init__(
        self,
        metadata: Metadata,
        *,
        size: int,
        cipher: ClusterCipher | None = None,
        backing: BlockDevice | None = None,
        owned: tuple[BlockDevice, ...] = (),
        data: Host | None = None,
    ) -> None:
        """Use an image whose tables were read.

        Args:
            metadata: Its tables, which this device then owns.
            size: Bytes of the disk.
            cipher: For an encrypted image; without it nothing can be read or written.
            backing: The content of the disk where this image has none.
            owned: Devices that `close` closes.
            data: Its external data file, if it has one and that was opened.
        """
        self._content = WritableContent(metadata, size, cipher, backing, data)
        self._owned = owned
        self._lock = OwnedLock(Owner("the qcow2 image"))
        self._closed = False
        self._in_doubt = False  # a change began, and the tables in memory may be stale
        self._waiting = False  # changes before it are not durable yet

    @property
    def size(self) -> int:
        return self._content.size

    @property
    def block_size(self) -> int:
        return SECTOR

    @property
    def header(self) -> Qcow2Header:
        """The image's header, as it is now."""
        return self._metadata.header

    @property
    def read_only(self) -> bool:
        """Whether writing is refused."""
        return self._metadata.read_only

    @property
    def backing(self) -> BlockDevice | None:
        """The backing file's disk, if there is one."""
        return self._content.backing

    @property
    def _metadata(self) -> Metadata:
        return self._content.metadata

    def with_owned(self, *devices: BlockDevice) -> Qcow2Device:
        """Let `close` close these devices too; return this one."""
        self._owned += devices
        return self

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self._check_range(offset, len(buffer))
        self._check_readable()
        view = memoryview(buffer).cast("B")
        with self._lock:
            self._check_open()
            self._settle(reading=True)
            content = self._content
            encrypted = content.read(offset, view)
        # Threads decrypt in parallel, each the data that it has read.
        for extent, part in encrypted:
            content.decrypt(extent, part)

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._check_range(offset, len(data))
        self._check_writable()
        view = memoryview(data).cast("B")
        if view:
            self._change(lambda: self._write(offset, view))

    def _write(self, offset: int, view: memoryview) -> None:
        while view:
            count = self._content.write_some(offset, view)
            self._metadata.relieve()
            offset += count
            view = view[count:]

    def flush(self) -> None:
        """Make everything written durable: data, then counts, then tables.

        Raises:
            DeviceError: It failed. If the device's own flush failed, open the image again.
        """
        with self._lock:
            self._check_open()
            if not self.read_only:
                self._settle()
                self._metadata.commit()  # it can be repeated wherever it stopped

    def discard(self, offset: int, size: int, /) -> None:
        """Make a range read as zeros, and free its clusters, here and in the device below.

        In an image of version 2 with a backing file, zeros are written instead.
        """
        self._check_range(offset, size)
        self._check_writable()
        if size:
            self._change(lambda: self._content.zero(offset, offset + size))

    def extents(self, offset: int = 0, size: int | None = None) -> Iterator[Extent]:
        """Yield where a range of the disk is, in order: data, zeros, or nothing.

        The range is looked up in pieces: writes meanwhile may be seen or not.

        Args:
            offset: Byte offset.
            size: Bytes; up to the end by default.

        Raises:
            FormatError: A table is damaged.
            DeviceError: A table cannot be read.
        """
        size = self.size - offset if size is None else size
        self._check_range(offset, size)
        return joined(self._extents(offset, offset + size))

    def _extents(self, offset: int, end: int) -> Iterator[Extent]:
        step = _LOOK_AHEAD * self.header.cluster_size
        while offset < end:
            stop = min(end, (offset // step + 1) * step)
            with self._lock:
                self._check_open()
                self._settle(reading=True)
                found = list(extents(self._metadata, offset, stop))
            yield from found
            offset = stop

    def data_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield offset and length of the parts of a range that may hold data, in order.

        All backing files are searched, but only tables are read; zeros that are stored
        as data count as data. Errors are those of `extents`.
        """
        return merged(data_of(self, offset, size))

    def backed_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of a range whose clusters exist, so that a write allocates none."""
        for extent in self.extents(offset, size):
            # A cluster shared with a snapshot is copied by the first write.
            if extent.kind is EntryKind.DATA and not self.header.snapshot_count:
                yield extent.offset, extent.length

    def reserve(self, offset: int, size: int, /) -> None:
        """Compare the space that a range lacks with what is free; nothing is reserved."""
        self._check_range(offset, size)
        self._check_writable()
        backed = sum(length for _, length in self.backed_ranges(offset, size))
        host = self._metadata.host.device
        if isinstance(host, FileDevice):
            host.require_space(size - backed)

    def resize(self, size: int, /) -> None:
        """Change the size of the disk; new bytes are zero, and clusters beyond the end are freed.

        Raises:
            ValueError: The disk cannot have that size.
            ReadOnlyError: The image is open for reading only.
            UnsupportedError: The image has version 2, which cannot store the sizes of snapshots.
            DeviceError: It failed; the disk has its old size, or the new one.
        """
        self._check_writable()
        header = self.header
        entries = l1_entries(size, header.cluster_bits)
        if not 0 <= size <= MAX_SIZE or size % SECTOR or entries * 8 > MAX_L1_SIZE:
            raise ValueError(f"a qcow2 disk with these clusters cannot have {size} bytes")
        if header.snapshot_count and header.version == 2:
            raise UnsupportedError(
                "a qcow2 image of version 2 with snapshots cannot be resized",
                feature="resize with snapshots",
            )
        with self._lock:
            if size != self.size:
                self.flush()  # so that no earlier write is in doubt as well
                self._change(lambda: self._resize(size, entries))

    def _resize(self, size: int, entries: int) -> None:
        metadata = self._metadata
        if not invalidate_bitmaps(metadata.host, metadata.header, resized=True):
            metadata.change_header(autoclear=0)
        if size > self.size:
            grow(self._content, size, entries)
        else:
            shrink(self._content, size)

    def rewrite(self, change: Callable[[BlockDevice], _Result]) -> _Result:
        """Run a change of the whole image, such as those of `formats.qcow2.snapshots`.

        Everything written so far becomes durable first; other threads wait
        meanwhile.

        Args:
            change: Called with the device that holds the image.

        Returns:
            The result of ``change``.

        Raises:
            ReadOnlyError: The image is open for reading only.
            StorageError: What ``change`` raised.
        """
        self._check_not_read_only()
        with self._lock:
            self.flush()
            host = self._metadata.host
            self._waiting, self._in_doubt = False, True
            try:
                result = change(host.device)
            except StorageError as error:
                if isinstance(error, DeviceError):
                    host.distrust()
                self._read_again()
                raise
            self._read_again()
            return result

    def reload(self) -> None:
        """Read the image again, because another process may have written it; not for a snapshot.

        All earlier writes must be durable.

        Raises:
            StorageError: The image is not sound any more.
        """
        with self._lock:
            self._check_open()
            if self._metadata.dirty and not self._in_doubt:
                raise ValueError(
                    "writes to the qcow2 device are not durable yet: call flush() first"
                )
            self._settle()
            self._waiting, self._in_doubt = False, True
            self._read_again()

    def _read_again(self) -> None:
        """Read the tables again, so that nothing is in doubt any more."""
        host = self._metadata.host
        header = read_header(host.device)
        l1 = host.read_table(header.l1_offset, header.l1_size)
        self._content.metadata = Metadata(host, header, l1, read_only=self.read_only)
        self._content.size = header.size
        self._content.forget()
        self._in_doubt = False

    def change_tables(self, change: Callable[[Metadata], None]) -> None:
        """Run a change of the tables in memory, for this package; like a write it is not durable.

        Raises:
            ReadOnlyError: The image is open for reading only.
            StorageError: What ``change`` raised.
        """
        self._check_not_read_only()
        self._change(lambda: change(self._metadata))

    def _change(self, step: Callable[[], None]) -> None:
        """Run a step that changes the image and the tables in memory (Q26).

        They are in doubt until it ends, or fails with an error that it has handled.
        """
        with self._lock:
            self._check_open()
            self._settle()
            self._waiting = self._metadata.dirty
            self._in_doubt = True
            try:
                self._metadata.begin()
                step()
            except StorageError:
                self._in_doubt = False
                raise
            self._in_doubt = False

    def _settle(self, *, reading: bool = False) -> None:
        """After an interrupted change, read the image again.

        Raises:
            DeviceError: That would lose earlier writes, which are still in memory only;
                with ``reading`` they are read from there instead.
        """
        if not self._in_doubt or (reading and self._waiting):
            return
        if self._waiting:
            raise DeviceError(
                "a change of the qcow2 image was interrupted while earlier ones were not durable"
                " [Q26]",
                hint="open the image again, and repeat the writes that were not flushed",
            )
        if not self.read_only:
            self._metadata.host.flush()
        self._read_again()

    def close(self) -> None:
        """Write the pending changes, and close the owned devices. It may be called twice.

        In a child nothing is written: the parent does that.

        Raises:
            DeviceError: Writing failed; the device is closed nevertheless.
        """
        if self._lock.owner.is_other:
            return
        with self._lock:
            if self._closed:
                return
            try:
                if self._in_doubt and self._waiting:
                    self._settle()
                elif self._metadata.dirty and not self._in_doubt:
                    self._metadata.commit()
            except StorageError:
                self._close_owned()
                raise
            self._close_owned()

    def _close_owned(self) -> None:
        try:
            for device in self._owned:
                device.close()
        finally:
            self._closed = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except DeviceError:
            # An earlier error tells more, and after it a file that was to become an image
            # is already closed and removed.
            if error is None:
                raise

    def _check_range(self, offset: int, size: int) -> None:
        self._lock.owner.require()
        super()._check_range(offset, size)

    def _check_readable(self) -> None:
        if self._content.cipher is None and self.header.crypt_method != CRYPT_NONE:
            raise UnsupportedError(
                "the qcow2 image is encrypted, and no key was given", feature="encryption"
            )

    def _check_writable(self) -> None:
        self._check_not_read_only()
        self._check_readable()

    def _check_not_read_only(self) -> None:
        self._lock.owner.require()
        if self.read_only:
            raise ReadOnlyError("the qcow2 image is open for reading only")

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the qcow2 device is closed")
