"""Backups: of an image by its path, of an open store, of one that another process owns.

An image is copied as it lies, still encrypted, by the rules of `blobstore.copies.copier`.
The disk of a qcow2 image becomes another image, without snapshots.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from blobstore.container.open_container import is_settled, open_container
from blobstore.container.verification import verify
from blobstore.copies.copier import Copier, new_copy
from blobstore.errors import StoreBusyError
from blobstore.image.creation import existing_images_refused
from blobstore.image.files import is_same_file
from blobstore.image.layers import LayersLock, open_layers
from blobstore.store.store import Store
from formats.errors import ArgumentError, StorageError

if TYPE_CHECKING:
    import luks
    from blobstore.copies.copier import Progress
    from blobstore.image.layers import Layers
    from formats.devices.device import BlockDevice

    AnyPath = str | os.PathLike[str]


class BacksUpItself(Protocol):
    """A store that another process backs up: a `StoreClient`."""

    def backup(
        self, destination: AnyPath, *, overwrite: bool = False, progress: Progress | None = None
    ) -> None: ...


def backup(
    source: AnyPath | Store | BacksUpItself,
    destination: AnyPath,
    secret: bytes | luks.Secret | luks.VolumeKey | None = None,
    *,
    header: AnyPath | None = None,
    overwrite: bool = False,
    limits: luks.KdfLimits | None = None,
    progress: Progress | None = None,
) -> None:
    """Copy an image so that the copy holds one state of the store, whoever writes meanwhile.

    The copy has the same keys, keyslots and store id: it is the same store at one moment. A
    detached LUKS header is not copied. Holes stay holes. A qcow2 image gets no snapshots of
    the other, nor what a backing file would have.

    An image that is named by its path is copied without a lock, and without asking its
    owner; the copy opens as after a power cut at that moment. That of a store that is open,
    here or at its owner, opens as if it had been closed then, with all that was written to
    windows; only those that are being written in place are unverified in it.

    Args:
        source: The image, or its store, which stays open.
        destination: The copy, which appears whole or not at all.
        secret: Opens an image that is named by its path, to read the heads.
        header: File of its detached LUKS header.
        overwrite: Replace what is there.
        limits: As `blobstore.open`, of an image that is named by its path.
        progress: Called with bytes done and in all.

    Raises:
        StoreBusyError: It changed too much in each of `PASSES` passes.
        ImageExistsError: ``destination`` exists.
        ValueError: It is the image itself, or its header.
        SecretRequiredError, NoKeyslotMatchError, FormatError, DeviceError: As
            `blobstore.open`.
        UnsupportedError: The store was opened on a device, or without the lock.
    """
    if isinstance(source, Store):
        from blobstore.copies.running import backup_store  # noqa: PLC0415  not to copy by path

        _require_no_key(secret, header)
        backup_store(source, destination, overwrite=overwrite, progress=progress)
    elif isinstance(source, str | os.PathLike):
        with ExitStack() as stack:
            if any(one and is_same_file(destination, one) for one in (source, header)):
                raise ArgumentError(f"{destination} is the image itself, or its header")
            layers = open_layers(stack, source, secret, header=header, lock=False, limits=limits)
            _backup_layers(stack, layers, destination, overwrite=overwrite, progress=progress)
    else:
        _require_no_key(secret, header)
        source.backup(destination, overwrite=overwrite, progress=progress)


def _require_no_key(secret: object, header: object) -> None:
    if secret is not None or header is not None:
        raise ArgumentError("a store that is open needs neither secret nor header to be copied")


def _backup_layers(
    stack: ExitStack,
    layers: Layers,
    destination: AnyPath,
    *,
    overwrite: bool,
    progress: Progress | None,
) -> None:
    with existing_images_refused(), new_copy(stack, layers, destination, overwrite) as copy:
        Copier(layers, copy, progress).run()
        volume = layers.volume
        view = copy if volume is None else stack.enter_context(volume.over(copy))
        _require_same_health(layers, view)
        copy.flush()


def _require_same_health(layers: Layers, copy: BlockDevice) -> None:
    """Check that a copy has no problem that its source does not have."""
    lock = LayersLock(layers)

    def check(device: BlockDevice) -> set[str]:
        return {problem.message for problem in verify(open_container(device)).problems}

    problem: StorageError | None = None
    try:
        problems = check(copy)
    except StorageError as error:
        # If that is how the source is, there was nothing to copy.
        lock.read_anew(lambda: open_container(layers.payload), is_settled)
        problem, problems = error, {str(error)}
    if problems:
        problems -= lock.read_anew(lambda: check(layers.payload), lambda found: not found)
    if problems:
        raise StoreBusyError(f"the copy is not what its source is: {min(problems)}") from problem
