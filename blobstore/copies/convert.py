"""`blobstore convert`: an image's payload into another image."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, Unpack

from blobstore.container.scan import looks_like_container
from blobstore.copies.convert_bytes import HOLE_SIZE, carry, worker_count
from blobstore.copies.convert_ends import Destination, ExistingDestination, Source
from blobstore.copies.convert_kinds import IMAGE_KINDS, image_kind
from blobstore.copies.convert_ranges import written_ranges
from blobstore.errors import CorruptBlobError, StoreBusyError
from blobstore.image.creation import new_image
from blobstore.image.files import is_same_file
from blobstore.image.layers import LayersLock
from blobstore.image.place import is_file
from formats.errors import ArgumentError, FormatError
from luks.payload.options import FormatKeywords, require_format_keywords

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    import luks
    from blobstore.container.open_container import OpenContainer
    from blobstore.image.layers import Layers
    from blobstore.store.description import StateDigest
    from formats.devices.device import BlockDevice
    from formats.qcow2.creation import Qcow2Options
    from formats.qcow2.opening import BackingOpener
    from formats.qcow2.snapshot_table import SnapshotKey

    AnyPath = str | os.PathLike[str]
    Progress = Callable[[int, int], None]

_SECTOR_SIZE: Final = 512
#: Payloads of at least this many bytes are worth importing NumPy for, which encrypts many
#: sectors at once: importing it takes 50 ms (spec/decisions/0013).
_WORTH_NUMPY: Final = 16 << 20


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
    qcow2_options: Qcow2Options | None = None,
    jobs: int | None = None,
    allow_unprotected: bool = False,
    expect_digest: StateDigest | None = None,
    at_least_generation: int = 0,
    lock: bool = True,
    limits: luks.KdfLimits | None = None,
    progress: Progress | None = None,
    **luks_options: Unpack[FormatKeywords],
) -> None:
    """Write the payload of an image into another image, encrypted with another key or not at all.

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
        to: One of `blobstore.IMAGE_KINDS`, such as ``"luks2"``; by default what
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
        limits: As `blobstore.open`, of images that exist.
        progress: Called with bytes done and in all.
        luks_options: Fields of `luks.FormatOptions`, such as ``kdf``, ``cipher`` or
            ``sector_size``, for the destination.

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
        ArgumentError: The arguments do not fit together.
        TypeError: There is no such option.
    """
    require_format_keywords("blobstore.convert", luks_options)
    if to is not None and to not in IMAGE_KINDS:
        raise ArgumentError(f"{to!r} is not a kind of image: one of {', '.join(IMAGE_KINDS)}")
    read = Source(
        path=source,
        secret=secret,
        header=header,
        image_format=image_format,
        encrypted=encrypted,
        snapshot=snapshot,
        open_backing=open_backing,
        lock=lock,
        allow_unprotected=allow_unprotected,
        expect_digest=expect_digest,
        at_least_generation=at_least_generation,
        limits=limits,
    )
    written: Destination | ExistingDestination
    if create:
        written = Destination(
            path=destination,
            secret=new_secret,
            header=new_header,
            kind=IMAGE_KINDS[to] if to else None,
            overwrite=overwrite,
            qcow2_options=qcow2_options,
            luks=luks_options,
        )
    elif luks_options:
        raise ArgumentError(
            f"{', '.join(luks_options)} cannot be changed: create=False writes into what exists"
        )
    else:
        written = ExistingDestination(
            path=destination, secret=new_secret, header=new_header, limits=limits
        )
    _carry_payload(read, written, as_bytes=as_bytes, holes=holes, jobs=jobs, progress=progress)


def _carry_payload(
    source: Source,
    destination: Destination | ExistingDestination,
    *,
    as_bytes: bool,
    holes: bool,
    jobs: int | None,
    progress: Progress | None,
) -> None:
    """Write the payload of one image into another; see `convert`."""
    workers = worker_count(jobs)
    for written in (destination.path, destination.header):
        for read in (source.path, source.header):
            if written is not None and read is not None and is_same_file(written, read):
                raise ArgumentError(f"{written} is the image itself, or its header")
    with ExitStack() as resources:
        old = source.open(resources)
        container = None if as_bytes else _container(source, old)
        if container is None and source.is_pinned:
            raise ArgumentError("only a store has a digest and a generation")
        with _opened(destination, old, container) as new:
            create = isinstance(destination, Destination)
            blank = create and is_file(new.path)
            if container is None:
                _copy(old, new, workers, blank=blank, holes=holes, progress=progress)
            else:
                from blobstore.copies.convert_store import transfer  # noqa: PLC0415  not for disks

                # In a new volume, all that lay there before is noise.
                blank = blank or (create and new.volume is not None)
                with _changes_noticed(old, container, locked=source.lock):
                    transfer(
                        container,
                        new.payload,
                        encrypted=new.encrypted,
                        blank=blank,
                        progress=progress,
                    )
            new.payload.flush()


def _container(source: Source, layers: Layers) -> OpenContainer | None:
    """Return the container in a source, if it has one, which must be as is demanded."""
    if not looks_like_container(layers.payload):
        return None
    from blobstore.store.reliance import (  # noqa: PLC0415  not for disks
        require_pinned,
        require_protection,
    )

    container = _open_container(layers, locked=source.lock)
    if not source.allow_unprotected:
        require_protection(
            container.header,
            encrypted=layers.encrypted,
            with_secret=source.secret is not None,
        )
    require_pinned(container.directory, source.expect_digest, source.at_least_generation)
    return container


@contextmanager
def _opened(
    destination: Destination | ExistingDestination, old: Layers, container: OpenContainer | None
) -> Iterator[Layers]:
    """Open the destination; its payload has room for what the source's holds."""
    size = old.payload.size
    if isinstance(destination, ExistingDestination):
        with ExitStack() as resources:
            yield destination.open(resources, size)
        return
    block_size = container.block_size if container else size
    wanted = destination.image(image_kind(old), size, block_size)
    sector_size = 1 if wanted.luks is None else wanted.luks.sector_size or _SECTOR_SIZE
    with new_image(wanted, size + -size % sector_size) as image:
        yield image.layers


def _open_container(old: Layers, *, locked: bool) -> OpenContainer:
    from blobstore.container.open_container import is_settled, open_container  # noqa: PLC0415  not for disks

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
    # What was never written is not read either: it is zeros, or in a volume noise, which
    # may become other noise if holes are asked for.
    skip_unwritten = skip_zeros if old.volume is None else holes and blank
    ranges = written_ranges(old) if skip_unwritten else [(0, size)]
    if size >= _WORTH_NUMPY and (old.encrypted or new.encrypted):
        from luks.crypto.fast.bulk import expect_much  # noqa: PLC0415  not for images in the clear

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
