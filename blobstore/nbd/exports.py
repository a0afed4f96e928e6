"""What can be exported: sections of a store, its payload, and block devices (N23 to N59)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from blobstore.errors import BlobNotFoundError, UnwrittenBlobError
from formats.container.model import BLOCK_SIZES, IDENTIFIER
from formats.devices.device import MemoryDevice, read_exactly
from formats.errors import ArgumentError, ReadOnlyError
from formats.nbd.model import Export

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from blobstore.store.description import SectionInfo
    from blobstore.store.store import Store
    from formats.devices.device import BlockDevice, ReadableBuffer


@dataclass(frozen=True, slots=True)
class Described:
    """An export that can be opened.

    Attributes:
        export: What clients are told.
        version: Two that have different ones do not have the same content.
    """

    export: Export
    version: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """An export that is open.

    Attributes:
        export: What clients are told.
        device: Its bytes; used by one thread at a time.
        fills: Whether the device's ``discard`` fills with zeros, and at once.
        close: Gives the device back; may raise `StorageError`.
        holds_store: Whether the store cannot be released while it is open.
    """

    export: Export
    device: BlockDevice
    fills: bool
    close: Callable[[], None]
    holds_store: bool = False


class Source(Protocol):
    """Where exports come from."""

    def names(self) -> list[str]:
        """Return the names of those that there are now."""

    def describe(self, name: str) -> Described:
        """Return what there is of that name.

        Raises:
            BlobNotFoundError, UnwrittenBlobError: There is nothing to export.
            StorageError: It cannot be exported.
        """

    def open(self, name: str) -> Opened:
        """Open it; errors as `describe`."""

    def open_released(self, name: str) -> Opened:
        """Open it while the store is another process's; errors as `describe`.

        It is what was committed last, and takes no writes. `open` follows when the store
        was taken over.
        """


class NbdSections:
    """The sections of an open store, which stays its opener's to close."""

    def __init__(
        self,
        store: Store,
        names: Collection[str] | None = None,
        *,
        in_place: Collection[str] = (),
        accept_unverified: bool = False,
    ) -> None:
        """Export sections of a store, also those that are registered later.

        Args:
            store: Open.
            names: Which sections; None means all.
            in_place: Windows whose writes go to the image directly (N50): faster, and
                neither atomic nor authenticated. See `Store.window`.
            accept_unverified: Go on with windows that were being written in place when the
                store was last used; otherwise they are not exported.
        """
        self._store = store
        self._names = None if names is None else frozenset(names)
        self._in_place = frozenset(in_place)
        self._accept_unverified = accept_unverified

    def names(self) -> list[str]:
        """Return the names of sections that can be opened."""
        # What damage leaves without a name cannot be asked for.
        sections = self._store.sections(allow_damaged=True)
        return [one.name for one in sections if one.name and self._has(one.name) and _exists(one)]

    def describe(self, name: str) -> Described:
        """Return what there is of that name; errors as `Store.section`."""
        if not self._has(name):
            raise BlobNotFoundError(f"section {name!r} is not exported")
        section = self._store.section(name)
        if not _exists(section):
            raise UnwrittenBlobError(f"section {name!r} was never written")
        if section.kind == "window":
            # As `Store.window` decides it.
            read_only = self._store.read_only or section.copies == 1
            export = Export(name, section.window_size, read_only, can_trim=not read_only)
            return Described(export)
        return Described(Export(name, section.size or 0, read_only=True), section.generation)

    def open(self, name: str) -> Opened:
        """Open a window, or read a blob; errors as `Store.window` and `Store.get`."""
        described = self.describe(name)
        if described.export.read_only and self._store.section(name).kind != "window":
            blob = MemoryDevice(self._store.get(name))
            export = Export(name, blob.size, read_only=True)
            return Opened(export, blob, fills=False, close=blob.close)
        window = self._store.shared_window(
            name, in_place=name in self._in_place, accept_unverified=self._accept_unverified
        )
        export = Export(name, window.size, window.read_only, can_trim=not window.read_only)
        return Opened(export, window, fills=True, close=window.close, holds_store=True)

    def open_released(self, name: str) -> Opened:
        """Read a window, or a blob; errors as `Store.get`."""
        described, section = self.describe(name), self._store.section(name)
        if section.kind != "window":
            return self.open(name)
        try:
            content = self._store.get(name)
        except UnwrittenBlobError:
            content = b""  # zeros (C62)
        device = _ReleasedDevice(section.window_content(content))
        return Opened(described.export, device, fills=True, close=device.close, holds_store=True)

    def _has(self, name: str) -> bool:
        return self._names is None or name in self._names


class NbdVolume:
    """The payload of an open store, under a name: only read, and changing meanwhile (N40).

    The store stays its opener's to close.
    """

    def __init__(self, name: str, store: Store) -> None:
        """Export the payload under ``name``."""
        self._name = name
        self._payload = store.payload()

    def names(self) -> list[str]:
        """Return its name."""
        return [self._name]

    def describe(self, name: str) -> Described:
        """Return what it is, if that is its name."""
        if name != self._name:
            raise BlobNotFoundError(f"there is no export {name!r}")
        size, block_size = self._payload.size, self._payload.block_size
        about = "the payload of the image, as it is now: it changes, and is not of one moment"
        export = Export(name, size, read_only=True, block_size=block_size, description=about)
        return Described(export, version=size)

    def open(self, name: str) -> Opened:
        """Return the payload, which is open as long as the store is."""
        return Opened(self.describe(name).export, self._payload, fills=False, close=lambda: None)

    def open_released(self, name: str) -> Opened:
        """Return the payload, as `open`: another process may be changing it then."""
        return self.open(name)


class NbdDevice:
    """One block device, such as a `luks.Volume`, which stays its opener's to close."""

    def __init__(self, name: str, device: BlockDevice, *, writable: bool = False) -> None:
        """Export a device.

        Raises:
            ArgumentError: It was to be writable, and is the payload of a store.
            DeviceError: It cannot be read.
        """
        if writable and _begins_as_a_store(device):
            raise ArgumentError(
                f"export {name!r} cannot be writable: it is the payload of a store, whose only"
                " writer is the store [N26]"
            )
        self._device = device
        self._export = Export(
            name, device.size, read_only=not writable, block_size=device.block_size
        )

    def names(self) -> list[str]:
        """Return its name."""
        return [self._export.name]

    def describe(self, name: str) -> Described:
        """Return what it is, if that is its name."""
        if name != self._export.name:
            raise BlobNotFoundError(f"there is no export {name!r}")
        return Described(self._export)

    def open(self, name: str) -> Opened:
        """Return the device, which is open already."""
        return Opened(self.describe(name).export, self._device, fills=False, close=lambda: None)

    def open_released(self, name: str) -> Opened:
        """Return the device, as `open`: it is not one of a store."""
        return self.open(name)


class _ReleasedDevice(MemoryDevice):
    """What a window was when its store was released: nothing is written to it (O141)."""

    def write(self, _offset: int, _data: ReadableBuffer, /) -> None:
        raise ReadOnlyError("the image was released: it takes no writes until it is taken over")


def _exists(section: SectionInfo) -> bool:
    """Say whether there is something to read: in a window, zeros (C62)."""
    return section.kind == "window" or section.size is not None


def _begins_as_a_store(device: BlockDevice) -> bool:
    """Say whether one of the two header copies of a store is there, sound or not."""
    start = read_exactly(device, 0, min(device.size, BLOCK_SIZES[-1] + 512))
    return IDENTIFIER.encode() in start
