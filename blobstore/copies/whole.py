"""Copying an image as it lies to another place, and handing it over: P40 to P49."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from blobstore.copies.passes import ImageCopy, complete_hand_over, is_being_handed_over
from blobstore.errors import ImageExistsError
from blobstore.image.creation import make_place
from blobstore.image.fencing import has_lock
from blobstore.image.luks_header import header_kept
from blobstore.image.markers import (
    CopyMarker,
    first_bytes,
    moved_to,
    require_unmarked,
)
from blobstore.image.place import is_same_place, keeps_out_writers, open_place, owner_named
from formats.devices.device import is_blank
from formats.errors import ArgumentError, StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from blobstore.copies.passes import Progress
    from blobstore.store.description import StateDigest
    from formats.devices.device import SharedDevice

    AnyPath = str | os.PathLike[str]


_log = LateLogger(__name__)


class ImageOwner(Protocol):
    """The process that owns the source: a `StoreClient`."""

    @property
    def released(self) -> bool: ...

    def at_rest(self) -> AbstractContextManager[StateDigest]: ...

    def release(self) -> StateDigest: ...

    def take_over(self) -> StateDigest: ...


class Copied(NamedTuple):
    """What `copy` did.

    Attributes:
        size: Bytes of the image.
        written: Bytes that were written to the copy.
        passes: How often the image was read while others could write to it.
        pause: Seconds for which they could not.
        digest: The state of the store in it, as its owner says; None if no owner was asked.
    """

    size: int
    written: int
    passes: int
    pause: float
    digest: StateDigest | None


def copy_image(
    source: AnyPath,
    destination: AnyPath,
    *,
    owner: ImageOwner | None = None,
    hand_over: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Copied:
    """Copy an image as it lies, still encrypted, to another place; no key is needed.

    The image is copied while others write to it, and what has changed is copied again. A last
    pass is made while no one does: its owner keeps devices waiting for that, and where
    it has none, its lock keeps writers out. Until all of it is durable the copy is one that no
    program opens. After an error or an interrupt the same call goes on with what is there.

    The copy has the same keys and identities. To have two of one TPM is seldom what is wanted:
    with ``hand_over`` the source is an image no more, and at no moment can both be opened.

    Args:
        source: Place of the image, with its LUKS header if that is attached.
        destination: Where it is copied to: a file, which is made if it is not there, or a
            device that is at least as large.
        owner: The process that owns the source, from `find_owner`; it stays the caller's to
            close.
        hand_over: Let the copy be the image from now on. The owner of the source has
            released it then; another one can be started on the copy.
        overwrite: Destroy what is at the destination.
        progress: Called with bytes done and in all, in the first pass.

    Returns:
        What was done.

    Raises:
        ImageExistsError: There is something at the destination, and not ``overwrite``.
        UnfinishedCopyError, MovedImageError: The source is not an image (P41, P46).
        DeviceBusyError: Another process writes to the source, or has the destination.
        DeviceFullError: The destination is too small.
        StoreBusyError: The source changed in each of several passes.
        DeviceError: One of the two failed.
        ArgumentError: Both are one.
    """
    if is_same_place(source, destination):
        raise ArgumentError(f"{destination} is the image itself")
    with ExitStack() as stack:
        # The lock of an image of Ceph is for those who may write to it.
        read_only = not hand_over and (
            owner is not None or keeps_out_writers(source, read_only=True)
        )
        read = stack.enter_context(open_place(source, read_only=read_only, lock=False))
        first = first_bytes(read)
        if moved_to(first) is None:
            require_unmarked(first)
        undo = stack.enter_context(ExitStack())
        remove = make_place(destination)
        if remove is not None:
            undo.callback(remove)
        written = stack.enter_context(open_place(destination, read_only=False))
        if moved_to(first) is not None:
            if not (hand_over and is_being_handed_over(read, written)):
                require_unmarked(first)
            with _locked(source, read):
                complete_hand_over(read, written)
            return Copied(read.size, 0, 0, 0, None)
        if not overwrite:
            _require_replaceable(destination, written, first)
        copy = ImageCopy(read, written, progress=progress)
        copy.begin()
        undo.pop_all()
        passes = copy.run()
        began = time.monotonic()
        digest = None
        stack.enter_context(header_kept(source))
        if hand_over:
            with _taken(source, read, owner) as digest:
                copy.settle(still=owner is not None or has_lock(source))
                copy.hand_over()
        elif owner is not None:
            with owner.at_rest() as digest:
                copy.settle()
        else:
            with _locked(source, read):
                copy.settle(still=has_lock(source))
        pause = time.monotonic() - began
        if not hand_over:
            copy.finish()
        return Copied(read.size, copy.copied, passes, pause, digest)


def _require_replaceable(place: AnyPath, device: SharedDevice, source: bytes) -> None:
    marker = CopyMarker.decode(first_bytes(device))
    if marker is not None:
        if not marker.keeps_from(source):
            return
        raise ImageExistsError(
            f"{place} is a copy that another image is being handed over to [P46]",
            hint="complete that with `blobstore copy --hand-over`, from that image",
        )
    if not is_blank(device):
        raise ImageExistsError(f"{place} holds something", hint="overwrite it with --force")


@contextmanager
def _locked(place: AnyPath, device: SharedDevice) -> Iterator[None]:
    """Keep others from writing to an image in the block."""
    with owner_named(place):
        device.lock()
    try:
        yield
    finally:
        device.unlock()


@contextmanager
def _taken(
    place: AnyPath, device: SharedDevice, owner: ImageOwner | None
) -> Iterator[StateDigest | None]:
    """Have an image from its owner in the block, which takes it back if it is not moved."""
    digest = None
    try:
        if owner is not None and not owner.released:
            digest = owner.release()
        with _locked(place, device):
            yield digest
    except BaseException:
        if owner is not None and moved_to(first_bytes(device)) is None:
            _give_back(owner)
        raise


def _give_back(owner: ImageOwner) -> None:
    try:
        owner.take_over()
    except StorageError as error:
        _log.error("the owner of the image does not take it back: %s", error)


#: Its public name, which is that of the package.
copy = copy_image
