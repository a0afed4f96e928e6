"""Reaching the store in an image: opened here, or at the process that owns the image.

This is what `blobstore.open` is. It stands above the room of owners, whose modules are
imported only where an image may have one (spec/decisions/0034). The rooms below open images
themselves, with `blobstore.opening`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from blobstore.image.place import may_have_owner
from blobstore.opening import open_store

if TYPE_CHECKING:
    import os
    from typing import Literal, TypedDict, Unpack

    import luks
    from blobstore.owner.client import StoreClient
    from blobstore.store.description import StateDigest
    from blobstore.store.protocol import AnyStore
    from blobstore.store.store import Store
    from formats.qcow2.snapshot_table import SnapshotKey

    AnyPath = str | os.PathLike[str]
    AnySecret = bytes | luks.Secret | luks.VolumeKey

    class OpenKeywords(TypedDict, total=False):
        """Keywords of `open_anywhere` beside ``direct``."""

        header: AnyPath | None
        read_only: bool
        allow_unprotected: bool
        expect_digest: StateDigest | None
        at_least_generation: int
        allow_damaged: bool
        lock: bool
        released: bool
        snapshot: str | SnapshotKey | None
        limits: luks.KdfLimits | None
        resume: bool


@overload
def open_anywhere(
    path: AnyPath,
    secret: AnySecret | None = None,
    *,
    direct: Literal[True],
    **options: Unpack[OpenKeywords],
) -> Store: ...
@overload
def open_anywhere(
    path: AnyPath,
    secret: AnySecret | None = None,
    *,
    direct: bool = False,
    **options: Unpack[OpenKeywords],
) -> AnyStore: ...
def open_anywhere(
    path: AnyPath,
    secret: AnySecret | None = None,
    *,
    header: AnyPath | None = None,
    read_only: bool = False,
    allow_unprotected: bool = False,
    expect_digest: StateDigest | None = None,
    at_least_generation: int = 0,
    allow_damaged: bool = False,
    lock: bool = True,
    released: bool = False,
    snapshot: str | SnapshotKey | None = None,
    limits: luks.KdfLimits | None = None,
    resume: bool = False,
    direct: bool = False,
) -> AnyStore:
    """Open the store in an image, or have the process that owns the image do what is asked.

    A store that was not closed is put in order first, unless it is opened for
    reading only, which writes nothing.

    Where the image has an owner (``blobstore serve``), the result is a `StoreClient` of that
    one: it has the same methods, and needs no secret; one that is given is not sent. What
    only a store in this process has (to be handed over, exported or emulated) needs
    ``direct``, with which type checkers know it as `Store`.

    Args:
        path: Image file, block device, or place on another machine (P1), such as
            ``"rbd:pool/image"``. It is locked until the store is closed, as far as it can be.
        secret: Passphrase or content of a key file, for an encrypted image; or its
            volume key, from `luks.verify_volume_key`.
        header: Likewise of the detached LUKS header.
        read_only: Permit no writing; several processes may read at once.
        allow_unprotected: Accept a secret for an image that is not encrypted,
            and a container less protected than it should be (C25).
        expect_digest: What `Store.digest` said of the state that it must be in.
            With ``at_least_generation`` it finds an image that was set back
            as a whole, which nothing inside the image can tell.
        at_least_generation: The generation that it must have reached. That of a
            commit which did not complete does not count.
        allow_damaged: Read blobs whose records verify also where damaged heads
            leave unknown whether they are the newest (C67): a human's decision, to
            save what is left. `DamagedHeadError` tells of such damage. No owner is asked.
        lock: False reads an image that others use, without keeping them out: what
            is read may be older than what they see, but is what the image was at some
            moment (C66); only with ``read_only``. No owner is asked.
        released: Open for writing without the lock, to be ready for
            `Store.take_over` while another process still uses the image. No owner is asked.
        snapshot: Name or ID of the internal snapshot of a qcow2 image to read, or a
            `SnapshotKey` that says which of the two; only with ``read_only``. It opens with
            what was a passphrase when it was made. No owner is asked.
        limits: What a key derivation of LUKS may cost at most; None is what
            `luks.KdfLimits` says (L61).
        resume: Continue a re-encryption that was interrupted, if there is one, so that the store
            can be used in the middle of it; `blobstore.owner.serve` then carries it on (O216).
        direct: Open the image here and ask no owner: with one, the image is in use.

    Raises:
        SecretRequiredError: The image is encrypted, and there is no secret.
        NoKeyslotMatchError: The secret opens no keyslot.
        PolicyError: See ``allow_unprotected``; or LUKS would not encrypt.
        PinMismatchError: See ``expect_digest`` and ``at_least_generation``.
        DamagedHeadError: Damage leaves unknown whether it is what these ask for.
        EmptyImageError, ForeignImageError, TruncatedImageError: As named.
        LuksHeaderError, ContainerError: No copy of the header is sound.
        CorruptStoreError: Parts of the store contradict each other.
        UnsupportedError: It needs something that is not implemented.
        ReadOnlyError: The file must not be written.
        DeviceBusyError: Another process uses it, or owns it and was not to be asked.
        StoreBusyError: It changes too much to be read without the lock.
        DeviceError: It cannot be opened or read; or the process that owns it belongs to
            another user (O5).
    """
    asks = lock and not (direct or allow_damaged or released) and snapshot is None
    client = None
    if asks:
        client = find_owner(
            path,
            read_only=read_only,
            expect_digest=expect_digest,
            at_least_generation=at_least_generation,
        )
    if client is not None:
        return client
    return open_store(
        path,
        secret,
        header=header,
        read_only=read_only,
        allow_unprotected=allow_unprotected,
        expect_digest=expect_digest,
        at_least_generation=at_least_generation,
        allow_damaged=allow_damaged,
        lock=lock,
        released=released,
        snapshot=snapshot,
        limits=limits,
        resume=resume,
    )


def find_owner(
    path: AnyPath,
    *,
    read_only: bool = False,
    expect_digest: StateDigest | None = None,
    at_least_generation: int = 0,
) -> StoreClient | None:
    """Return the store of the process that owns an image, or None if none does.

    Args:
        path: Place of the image; links are followed.
        read_only: Permit no writing.
        expect_digest: As for `blobstore.open`, asked of the owner.
        at_least_generation: Likewise.

    Raises:
        PinMismatchError: The store is not what these ask for.
        DamagedHeadError: Damage leaves unknown whether it is.
        DeviceError: What listens there belongs to another user (O5).
    """
    if not may_have_owner(path):
        return None
    from blobstore.owner import client  # noqa: PLC0415  few images have an owner

    return client.find_owner(
        path,
        read_only=read_only,
        expect_digest=expect_digest,
        at_least_generation=at_least_generation,
    )


#: Its public name, which is that of the package.
open = open_anywhere  # noqa: A001
