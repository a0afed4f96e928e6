"""The LUKS header of an image whose store is open, as a place for the functions of `luks`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from blobstore.image.opened import header_in_disk
from formats.devices.device import Device
from formats.errors import DeviceBusyError, ReadOnlyError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import luks
    from blobstore.store.session import Session
    from formats.devices.device import ReadableBuffer, SliceDevice, WritableBuffer


#: Seconds to wait for another thread, as `luks.header.lock` does for another program.
HEADER_TIMEOUT: Final = 10.0


@contextmanager
def luks_place(session: Session, *, write: bool) -> Iterator[luks.Place]:
    """Yield where the LUKS header is; as `Store.luks_place`."""
    session.require_open()
    layers = session.layers
    if layers is None:
        raise UnsupportedError(
            "a store that was opened on a device has no LUKS header of its own",
            feature="LUKS headers of devices",
        )
    if write:
        session.require_still()
    area = header_in_disk(layers)
    if area is None:
        from blobstore.image import luks_header  # noqa: PLC0415  not for LUKS in qcow2 images

        with luks_header.luks_place(layers.path, layers.header_path, write=write) as place:
            yield place
    elif not write:
        yield HeaderArea(session, area)
    else:
        with header_alone(session):
            yield HeaderArea(session, area)


@contextmanager
def header_alone(session: Session) -> Iterator[None]:
    """Keep other threads from the LUKS header in the disk; they do not wait for ever.

    Raises:
        DeviceBusyError: Another thread changes it, for too long.
    """
    with session.header_lock.within(HEADER_TIMEOUT) as alone:
        if not alone:
            raise DeviceBusyError(
                "another program is changing the LUKS header of the image",
                hint="try again when it has finished",
            )
        yield


class HeaderArea(Device):
    """The LUKS header in the disk of a qcow2 image that is open. Its payload is not in it.

    Who writes holds ``Session.header_lock``. Each write counts ``Session.header_writes``, so
    that another user of the header notices.
    """

    def __init__(self, session: Session, area: SliceDevice) -> None:
        """Serve ``area``, which stays the session's to close."""
        self._session, self._area = session, area

    @property
    def size(self) -> int:
        return self._area.size

    @property
    def block_size(self) -> int:
        return self._area.block_size

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self._session.lock.owner.require()
        self._area.read_into(offset, buffer)

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._session.lock.owner.require()
        if self._session.read_only or self._session.released:
            raise ReadOnlyError("the image is not open for writing, so its LUKS header is not")
        self._session.header_writes += 1  # before it: an interrupt must not hide a write
        self._area.write(offset, data)

    def flush(self) -> None:
        self._session.lock.owner.require()
        self._area.flush()
