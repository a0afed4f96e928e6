"""A store whose image is re-encrypted while it is open (O210 to O214).

Users of the store do not notice: the container goes on, with the same bytes through another
device, and under another key. Windows and transactions that are under way go on, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from blobstore.container.protection import change_protection, require_changeable
from blobstore.image.layers import LayersLock
from blobstore.store.reliance import require_protection
from formats.errors import UnsupportedError

if TYPE_CHECKING:
    import luks
    from blobstore.image.layers import Layers
    from blobstore.image.moving import MovingPayload
    from blobstore.store.session import Session
    from formats.container.model import ContainerHeader


def require_movable(session: Session, *, protect: bool) -> Layers:
    """Check that the image of a store can be re-encrypted while the store is open (O211).

    Args:
        session: Of the store.
        protect: Whether its key or flag will change, too.

    Returns:
        The layers of the image.

    Raises:
        UnsupportedError: The store was opened on a device, or the image encrypts itself.
        DeviceBusyError: It is being re-encrypted.
        ReadOnlyError, DamagedHeadError, CorruptBlobError, NoSpaceError, PoisonedStoreError: The
            store cannot be written, or not get another key.
    """
    with session.lock:
        session.require_writable()
        session.require_still()
        layers = session.layers
        if layers is None or session.image_lock is None:
            raise UnsupportedError(
                "only a store that was opened by the path of its image can be re-encrypted",
                feature="re-encryption below a store on a device",
            )
        if layers.encrypts_itself:
            raise UnsupportedError(
                f"{layers.path} is encrypted by qcow2 itself, which has no re-encryption in place",
                feature="re-encryption of qcow2's own encryption",
                hint="convert writes it into another image",
            )
        if layers.volume is not None and layers.volume.header.version == 1:
            raise UnsupportedError(
                f"{layers.path} is a LUKS1 volume, which is re-encrypted without an owner [O210]",
                feature="re-encryption of LUKS1 while it is in use",
                hint="stop its owner, or convert the header to LUKS2 first",
            )
        session.container.next_generation()  # refuses a store that must not be written
        if protect:
            require_changeable(session.container)
        return layers


def move(session: Session, moving: MovingPayload) -> None:
    """Have a store use the payload that is being moved from now on (O212).

    Args:
        session: Of the store.
        moving: Closed with the store, if not before.
    """
    with session.lock:
        layers = session.layers
        assert layers is not None, "a store whose image is moved has one"
        # Not in between: what is encrypted already and what is not yet are equally right.
        session.require_protection = _anything
        session.resources.callback(moving.close)
        _use(session, replace(layers, volume=None, moving=moving, header_path=moving.header_path))


def settle(session: Session, volume: luks.Volume | None) -> None:
    """Have a store use the payload as it is at the end, or where it was stopped (O214).

    Args:
        session: Of the store.
        volume: With the payload; None if it is in the clear. Closed with the store.
    """
    with session.lock:
        layers = session.layers
        assert layers is not None, "a store whose image is moved has one"
        header_path = None if volume is None else layers.header_path
        now = replace(layers, volume=volume, moving=None, header_path=header_path)
        if volume is not None:
            session.resources.enter_context(volume)

        def protected(header: ContainerHeader) -> None:
            require_protection(header, encrypted=now.encrypted, with_secret=now.encrypted)

        _use(session, now)
        session.require_protection = protected


def protect(session: Session, *, encrypted: bool) -> None:
    """Give a store another key and set its flag, while it is in use (O213).

    Raises:
        NoSpaceError, CorruptBlobError, DamagedHeadError, DeviceError, PoisonedStoreError: As
            `change_protection`. Where it had begun, the next use of the store finishes it.
    """
    with session.lock:
        session.require_writable()
        container = session.container
        container.writer.require_sound()
        # From here on until memory has followed, the store may be in the middle of it.
        session.out_of_step = True
        try:
            change_protection(container, encrypted=encrypted)
        finally:
            session.out_of_step = container.writer.poisoned


def _use(session: Session, layers: Layers) -> None:
    session.container.use_device(layers.payload)
    session.layers, session.image_lock = layers, LayersLock(layers)
    session.image = layers.image()


def _anything(_header: ContainerHeader) -> None:
    """Take a container however it is protected."""
