"""Snapshots of the disk that an open store lies in (O80 to O84), and order before a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from blobstore.container.open_container import open_container
from blobstore.container.recovery import close
from blobstore.errors import PinMismatchError
from blobstore.image import opened
from formats.errors import StorageError, UnsupportedError
from formats.qcow2.snapshot_table import SnapshotKey, find_snapshot

if TYPE_CHECKING:
    from blobstore.image.layers import Layers
    from blobstore.store.session import Session
    from blobstore.store.windows.window import Window
    from formats.qcow2.snapshot_table import Snapshot


def put_in_order(session: Session) -> None:
    """Make all that was written durable, and record that, as closing does; but go on.

    What is copied after that, while the session's lock is held, opens as a store that was
    closed. Windows that are written in place are unverified there, as they are here (C62).

    Raises:
        ValueError: The store was closed, or a transaction is under way in this thread.
        ReadOnlyError: The store is open for reading only.
        DeviceError, PoisonedStoreError: What was written cannot be made durable.
    """
    session.require_still()
    session.require_writable()
    session.container.writer.require_sound()
    for window in list(session.lookup.windows.values()):
        cast("Window", window).flush()
    close(session.container)


def list_snapshots(session: Session) -> list[Snapshot]:
    """Return the snapshots of the image; as `Store.snapshots`."""
    layers = _require_layers(session)
    return session.at_one_moment(lambda: opened.list_snapshots(layers))


def create_snapshot(session: Session, name: str) -> Snapshot:
    """Keep the disk as it is now; as `Store.create_snapshot`."""
    layers = _require_layers(session)
    opened.require_snapshots(layers)
    put_in_order(session)
    return opened.create_snapshot(layers, name)


def delete_snapshot(session: Session, which: str | SnapshotKey) -> Snapshot:
    """Give up a snapshot; as `Store.delete_snapshot`."""
    layers = _require_layers(session)
    opened.require_snapshots(layers)
    session.require_still()
    session.require_writable()
    return opened.delete_snapshot(layers, which)


def apply_snapshot(session: Session, which: str | SnapshotKey) -> Snapshot:
    """Set the disk back, and go on with the store that is there then; as `Store.apply_snapshot`."""
    layers = _require_layers(session)
    opened.require_disk(layers)
    session.require_still()
    session.require_alone()
    found = find_snapshot(opened.list_snapshots(layers), which)
    key = SnapshotKey(found.id, found.name)
    _require_ours(session, layers, key)
    # From here on until memory has followed, what it knows may not be what is there.
    session.out_of_step = True
    failure: StorageError | None = None
    try:
        opened.apply_snapshot(layers, key)
    except StorageError as error:
        failure = error  # the disk is as it was, or as it is to be
    session.follow_image()
    if failure is not None:
        raise failure
    return found


def _require_ours(session: Session, layers: Layers, key: SnapshotKey) -> None:
    """Check that a snapshot holds this store, sound enough to go on with it.

    Raises:
        PinMismatchError: It holds another store.
        PolicyError: It is encrypted in another way, or less protected.
        UnsupportedError: It must not be written.
        StorageError: There is no sound store in it.
    """
    with opened.snapshot_payload(layers, key) as payload:
        container = open_container(payload)
        session.require_protection(container.header)
        known = session.container.header
        if (container.header.store_id, container.header.key) != (known.store_id, known.key):
            raise PinMismatchError(
                f"snapshot {key.name!r} holds another store than the one that is open [O83]",
                hint="close the store, then apply the snapshot",
            )
        if not container.writable:
            raise UnsupportedError(
                f"the store in snapshot {key.name!r} has features without which it must not be"
                " written [C15]",
                feature="unknown read-only-compatible features",
            )


def _require_layers(session: Session) -> Layers:
    session.require_open()
    if session.layers is None:
        raise UnsupportedError(
            "a store that was opened on a device has no snapshots [O80]",
            feature="snapshots of devices",
        )
    return session.layers
