"""`blobstore convert`: an image's payload into another image."""

from __future__ import annotations

import functools
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from blobstore.container.scan import looks_like_container
from blobstore.copies.convert_bytes import HOLE_SIZE, carry, worker_count
from blobstore.copies.convert_kinds import KINDS, kind_of
from blobstore.copies.convert_ranges import written_ranges
from blobstore.errors import CorruptBlobError, StoreBusyError
from blobstore.image.files import is_same_file
from blobstore.image.layers import LayersLock, existing_images_refused, make_layers, open_layers
from formats.errors import ArgumentError, DeviceFullError, EmptyImageError, FormatError
from luks.errors import PolicyError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    import luks
    from blobstore.container.open_container import OpenContainer
    from blobstore.copies.convert_kinds import Kind
    from blobstore.image.layers import Layers
    from blobstore.store.description import Digest
    from formats.devices.device import BlockDevice
    from formats.qcow2.creation import Options
    from formats.qcow2.opening import BackingOpener
    from formats.qcow2.snapshot_table import SnapshotKey

    AnyPath = str | os.PathLike[str]
    Progress = Callable[[int, int], None]

_SECTOR_SIZE: Final = 512
_LARGE_SECTOR_SIZE: Final = 4096
#: From so many bytes on, what makes ciphers fast is imported without waiting until it paid.
_MUCH: Final = 16 << 20


def convert(
    source: AnyPath,
    destination: AnyPath,
    secret: bytes | luks.Secret | luks.VolumeKey | None = None,
    new_secret: bytes | luks.Secret | None = None,
    *,
    to: str | None = None,
    image_format: str | None = None,
    encrypted: bool | None = None,
    snapshot: str | SnapshotKey | None = None,
    open_backing: BackingOpener | None = None,
    header: AnyPath | None = None,
    new_header: AnyPath | None = None,
    create: bool = True,
    overwrite: bool = False,
    as_bytes: bool = False,
    holes: bool = False,
    qcow2_options: Options | None = None,
    jobs: int | None = None,
    allow_unprotected: bool = False,
    expect_digest: Digest | None = None,
    at_least_generation: int = 0,
    lock: bool = True,
    progress: Progress | None = None,
    **luks_options: Any,
) -> None:
    """Write the payload of an image into another image, encrypted anew or not at all.

    A store is carried over as one: with its id, generations and older blobs, the
    flag that says whether it is encrypted set right, and a new key that
    authenticates it (C25). So its `Store.digest` is another one. Any other
    payload is copied byte for byte. A new file appears complete or not at all.

    Args:
        source: The image; it is locked against writers meanwhile, not modified.
        destination: The image to make, or with ``create=False`` to write into.
        secret: Opens the source, if it is encrypted.
        new_secret: For the destination, if that is to be encrypted; opens it with
            ``create=False``.
        to: One of `blobstore.copies.convert_kinds.KINDS`, such as ``"luks2"``; by default what
            the source is.
        image_format: What the source is: ``"raw"`` or ``"qcow2"``; None finds out.
        encrypted: Whether there is a LUKS volume in it; likewise.
        snapshot: Name or ID of the internal snapshot to convert, of a qcow2 image, or a
            `SnapshotKey` that says which of the two.
        open_backing: Opens backing files of the source; None refuses them.
        header: File of the source's detached LUKS header.
        new_header: File of the destination's.
        create: False writes into the payload of an image that exists, in place:
            whatever interrupts that leaves part of it. ``to`` then has no meaning.
        overwrite: Replace what is there.
        as_bytes: Copy a store byte for byte too, with flag and key as they are.
        holes: Keep holes, and make some of zeros where a raw destination is in the clear;
            one of qcow2 takes no space for zeros anyway, unless there is a volume in
            it. What was never written to a volume reads as noise there; in the
            destination, as zeros or as other noise.
        qcow2_options: Of `formats.qcow2.creation.create`, for the destination.
        jobs: Workers; by default one for each core.
        allow_unprotected: Take a store that is less protected than it should be.
        expect_digest: As `blobstore.open`, of the source.
        at_least_generation: Likewise.
        lock: False reads a source that others use: a store as it was at one moment, a
            disk whatever they just write.
        progress: Called with bytes done and in all.
        luks_options: Of `luks.format`, such as ``kdf``, ``cipher``, ``sector_size``.

    Raises:
        SecretRequiredError, NoKeyslotMatchError, PolicyError, FormatError,
        UnsupportedError, PinMismatchError: As `blobstore.open`, of either image.
        CorruptBlobError, DamagedHeadError, CorruptStoreError: The store is not
            whole; ``as_bytes`` copies it as it is.
        ImageExistsError, ForeignImageError: The destination exists.
        DeviceFullError: It is too small, or the disk is.
        EmptyImageError: The source has no bytes, and LUKS needs some.
        SnapshotNotFoundError: The source has no such snapshot.
        DeviceBusyError, DeviceError: Either image cannot be used.
        ValueError: The arguments do not fit together.
    """
    if to is not None and to not in KINDS:
        raise ArgumentError(f"{to!r} is no kind of image: one of {', '.join(KINDS)}")
    workers = worker_count(jobs)
    for written in (destination, new_header):
        for read in (source, header):
            if written is not None and read is not None and is_same_file(written, read):
                raise ArgumentError(f"{written} is the image itself, or its header")
    with ExitStack() as resources, existing_images_refused(), ExitStack() as names:
        old = open_layers(
            resources,
            source,
            secret,
            header=header,
            lock=lock,
            image_format=image_format,
            encrypted=encrypted,
            open_backing=open_backing,
            snapshot=snapshot,
        )
        if not old.encrypted and secret is not None and not allow_unprotected:
            raise _not_encrypted(source)
        container = None
        if not as_bytes and looks_like_container(old.payload):
            from blobstore.store.policy import (  # noqa: PLC0415  disks have none
                require_pinned,
                require_protection,
            )

            container = _open_container(old, locked=lock)
            if not allow_unprotected:
                require_protection(
                    container.header,
                    encrypted=old.encrypted,
                    with_secret=secret is not None,
                )
            require_pinned(container.directory, expect_digest, at_least_generation)
        elif expect_digest is not None or at_least_generation:
            raise ArgumentError("only a store has a digest and a generation")
        if create:
            new = _make(
                names,
                resources,
                destination,
                old,
                container,
                new_secret,
                kind=KINDS[to] if to else kind_of(old),
                header=new_header,
                overwrite=overwrite,
                qcow2_options=qcow2_options,
                luks_options=luks_options,
            )
        else:
            new = _open_destination(
                resources, destination, new_secret, new_header, old.payload.size
            )
        if container is not None:
            from blobstore.copies.convert_store import transfer  # noqa: PLC0415  disks need none

            # In a new volume, all that lay there before is noise.
            blank = create and (new.volume is not None or not new.path.is_block_device())
            with _changes_noticed(old, container, locked=lock):
                transfer(
                    container, new.payload, encrypted=new.encrypted, blank=blank, progress=progress
                )
        else:
            blank = create and not new.path.is_block_device()
            _copy(old, new, workers, blank=blank, holes=holes, progress=progress)
        new.payload.flush()


def _open_container(old: Layers, *, locked: bool) -> OpenContainer:
    from blobstore.container.open_container import is_settled, open_container  # noqa: PLC0415  disks have none

    if locked:
        return open_container(old.payload)
    return LayersLock(old).read_anew(lambda: open_container(old.payload), is_settled)


@contextmanager
def _changes_noticed(old: Layers, container: OpenContainer, *, locked: bool) -> Iterator[None]:
    """Tell a source that was written meanwhile from one that is damaged (C66)."""
    try:
        yield
    except (FormatError, CorruptBlobError) as error:
        if locked:
            raise
        now = _open_container(old, locked=False)
        if now.directory.generation == container.directory.generation:
            raise
        raise StoreBusyError(
            "the store was written while it was converted [C66]",
            hint="try again when it is written less, or wait for the lock",
        ) from error


def _make(
    names: ExitStack,
    resources: ExitStack,
    destination: AnyPath,
    old: Layers,
    container: OpenContainer | None,
    secret: bytes | luks.Secret | None,
    *,
    kind: Kind,
    header: AnyPath | None,
    overwrite: bool,
    qcow2_options: Options | None,
    luks_options: dict[str, Any],
) -> Layers:
    """Make the destination; its payload has room for what the source's holds."""
    size, version = old.payload.size, kind.luks_version
    make = functools.partial(
        make_layers,
        names,
        resources,
        destination,
        overwrite=overwrite,
        image_format=kind.image_format,
        qcow2_options=qcow2_options,
    )
    if not kind.encrypted:
        if secret is not None or header is not None or luks_options:
            raise ArgumentError("an image in the clear has no secret and no LUKS header")
        return make(size)
    if secret is None:
        raise ArgumentError("an encrypted image needs a secret")
    if not size:
        raise EmptyImageError("there is nothing in the image that could be encrypted")
    if version is None:
        if header is not None:
            raise ArgumentError("qcow2's own LUKS has its header in the image, and not elsewhere")
        return make(size, secret, own_luks=True, luks_options=luks_options)
    sector_size = luks_options.get("sector_size") or _SECTOR_SIZE
    if version > 1 and luks_options.get("sector_size") is None:
        blocks = container.block_size if container else _LARGE_SECTOR_SIZE
        if size % _LARGE_SECTOR_SIZE == 0 and blocks >= _LARGE_SECTOR_SIZE:
            sector_size = _LARGE_SECTOR_SIZE
        luks_options = luks_options | {"sector_size": sector_size}
    return make(
        size + -size % sector_size,
        secret,
        header=header,
        luks_options={"version": version} | luks_options,
    )


def _open_destination(
    resources: ExitStack,
    destination: AnyPath,
    secret: bytes | luks.Secret | None,
    header: AnyPath | None,
    needed: int,
) -> Layers:
    """Open an image that exists, to write into its payload."""
    layers = open_layers(resources, destination, secret, header=header, read_only=False)
    if not layers.encrypted and secret is not None:
        raise _not_encrypted(destination)
    if layers.payload.size < needed:
        raise DeviceFullError(
            f"the payload of {destination} has {layers.payload.size} bytes; {needed} are needed"
        )
    return layers


def _not_encrypted(path: AnyPath) -> PolicyError:
    return PolicyError(f"a secret was given for {path}, which is not encrypted [C25]")


def _copy(
    old: Layers,
    new: Layers,
    workers: int,
    *,
    blank: bool,
    holes: bool,
    progress: Progress | None,
) -> None:
    """Copy the payload byte for byte.

    Args:
        old: The source.
        new: The destination, at least as large.
        workers: How many.
        blank: Whether the destination is a new file.
        holes: Keep holes.
        progress: Called with bytes done and in all.
    """
    size = old.payload.size
    # Zeros need no space where what was never written reads as zeros.
    skip_zeros = blank and new.volume is None and (holes or new.disk is not None)
    # Nor is what was never written read: it is zeros, or below a volume noise, which may
    # become other noise where that is asked for.
    skip_unwritten = skip_zeros if old.volume is None else holes and blank
    ranges = written_ranges(old) if skip_unwritten else [(0, size)]
    if size >= _MUCH and (old.encrypted or new.encrypted):
        from luks.crypto.fast.bulk import expect_much  # noqa: PLC0415  only where something is encrypted

        expect_much()
    with ExitStack() as stack:
        ends = [
            (_view(stack, old, read_only=True), _view(stack, new, read_only=False))
            for _ in range(workers)
        ]
        hole_size = new.disk.header.cluster_size if new.disk else HOLE_SIZE
        carry(ends, ranges, hole_size=hole_size if skip_zeros else None, progress=progress)
    if blank and new.payload.size > size:
        # The last sector of a volume, of which the source has only a part.
        new.payload.write(size, bytes(new.payload.size - size))


def _view(stack: ExitStack, layers: Layers, *, read_only: bool) -> BlockDevice:
    """Return a way to the payload for one worker, who shares only the file with others."""
    if layers.volume is None:
        return layers.device
    return stack.enter_context(layers.volume.over(layers.device, read_only=read_only))
