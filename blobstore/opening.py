"""Stores in images: the layers of an image (`blobstore.image.layers`) with a container inside."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypedDict

from blobstore.image.layers import RAW, LayersLock, open_layers
from blobstore.image.place import keeps_out_writers
from blobstore.store.store import Store
from formats.container.model import DEFAULT_BLOCK_SIZE
from formats.errors import ArgumentError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    import luks
    from blobstore.container.initialise import SectionSpec
    from blobstore.store.description import StateDigest
    from formats.qcow2.creation import Qcow2Options
    from formats.qcow2.snapshot_table import SnapshotKey
    from luks.secret.randomness import RandomSource

    AnyPath = str | os.PathLike[str]
    #: Names with worst-case sizes in bytes, or all there is to say of sections.
    Sections = Mapping[str, int] | Iterable[SectionSpec]

#: Free bytes in a new image beyond what its sections need, unless a size is
#: given: room for what devices register later. Holes in the file until used.
DEFAULT_FREE = 8 << 20


class PackKeywords(TypedDict, total=False):
    """Keywords of `create_store` that `blobstore.pack` hands on: the rest a manifest says."""

    key_size: int
    kdf: luks.KdfCost | str | None
    iter_time: int
    label: str
    random: RandomSource | None


class CreateKeywords(PackKeywords, total=False):
    """Keywords of `create_store` that `blobstore.clone` hands on."""

    header: AnyPath | None
    encrypted: bool
    image_format: str
    own_luks: bool
    qcow2_options: Qcow2Options | None
    size: int | None
    free: int
    block_size: int
    overwrite: bool
    luks_version: int
    sector_size: int | None


def open_store(
    path: AnyPath,
    secret: bytes | luks.Secret | luks.VolumeKey | None = None,
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
) -> Store:
    """Open the store in an image.

    What the arguments mean and which errors there are, `blobstore.reaching.open_anywhere` says,
    which asks the owner of an image first; this asks no other process.
    """
    if not lock and not read_only:
        raise ArgumentError("without the lock an image can only be read")
    if released and read_only:
        raise ArgumentError("only a store opened for writing can be taken over")
    if snapshot is not None and not read_only:
        raise ArgumentError("a snapshot can only be read")
    if resume and (read_only or released):
        raise ArgumentError("only an image opened for writing, with its lock, can be resumed")
    with ExitStack() as guard:
        resources = guard.enter_context(ExitStack())
        layers = open_layers(
            resources,
            path,
            secret,
            header=header,
            read_only=read_only,
            lock=lock and not released,
            snapshot=snapshot,
            limits=limits,
            resume=resume,
        )
        store = Store.on_device(
            layers.payload,
            encrypted=layers.encrypted,
            with_secret=secret is not None,
            read_only=read_only,
            # One that is being encrypted or decrypted has its old flag, or its new one (O212).
            allow_unprotected=allow_unprotected or layers.moving is not None,
            expect_digest=expect_digest,
            at_least_generation=at_least_generation,
            allow_damaged=allow_damaged,
            image=layers.image(),
            resources=resources,
            image_lock=LayersLock(layers),
            layers=layers,
            released=released,
            unlocked=released or not (lock and keeps_out_writers(path, read_only=read_only)),
        )
        guard.pop_all()
        return store


def create_store(
    path: AnyPath,
    sections: Sections = (),
    secret: bytes | luks.Secret | None = None,
    *,
    header: AnyPath | None = None,
    encrypted: bool = True,
    image_format: str = RAW,
    own_luks: bool = False,
    qcow2_options: Qcow2Options | None = None,
    size: int | None = None,
    free: int = DEFAULT_FREE,
    block_size: int = DEFAULT_BLOCK_SIZE,
    overwrite: bool = False,
    luks_version: int = 2,
    key_size: int = 64,
    sector_size: int | None = None,
    kdf: luks.KdfCost | str | None = None,
    iter_time: int = 2000,
    label: str = "",
    random: RandomSource | None = None,
    fill: Callable[[Store], None] | None = None,
) -> Store:
    """Make a new image and open its store.

    A file appears under its name complete or not at all. A device, here or on another
    machine, is written in place; until the last write it holds no store.

    Args:
        path: Image file, block device, or place on another machine (P1). An existing file
            is replaced if it is blank, or with ``overwrite``; an image of Ceph RBD that is
            not there is made.
        sections: To be made; those without content are registered, unwritten.
        secret: Passphrase or content of a key file.
        header: File or place that gets the LUKS header, detached.
        encrypted: False for an image in the clear; then there is no secret.
        image_format: ``"raw"`` or ``"qcow2"``.
        own_luks: Encrypt the qcow2 image by itself, as QEMU does with
            ``encrypt.format=luks``; otherwise there is a LUKS volume in its disk.
        qcow2_options: Of `formats.qcow2.creation.create`.
        size: Bytes of the whole image, or of the disk in it; by default what the sections need and
            ``free`` bytes more. A device or a blank file keeps its size.
        free: See ``size``.
        block_size: Of the container, in bytes.
        overwrite: Destroy what is there.
        luks_version: 1 or 2.
        key_size: Bytes of the volume key: 64 for AES-256-XTS, 32 for AES-128.
        sector_size: Of LUKS2, in bytes; 4096 by default.
        kdf: Cost or kind of the key derivation, see `luks.format`.
        iter_time: Milliseconds that a measured key derivation is to take.
        label: Of LUKS2.
        random: Of everything that is random, keys as well; by default the operating
            system's. See `luks.format`.
        fill: Called with the store before the image takes its name; if it
            raises, the image is not made.

    Raises:
        ImageExistsError: There is a store, or a LUKS volume, already.
        ForeignImageError: There is something else.
        NoSpaceError: The sections do not fit into ``size``.
        DeviceFullError: The file system or the device is too small.
        DeviceBusyError: The file to replace is in use.
        DeviceError: The image cannot be made.
        ValueError: The arguments do not fit together.
    """
    from blobstore.container.initialise import (  # noqa: PLC0415  not needed to open
        container_size,
        initialise,
    )
    from blobstore.image.creation import NewImage, new_image  # noqa: PLC0415  likewise
    from luks.payload.options import FormatOptions  # noqa: PLC0415  likewise

    if encrypted and secret is None:
        raise ArgumentError("an encrypted image needs a secret; encrypted=False makes a clear one")
    options = None
    if encrypted:
        options = FormatOptions(
            version=1 if own_luks else luks_version,
            key_size=key_size,
            sector_size=sector_size,
            kdf=kdf,
            iter_time=iter_time,
            label=label,
            random=random,
        )
    new = NewImage(
        path=path,
        secret=secret,
        luks=options,
        header=header,
        size=size,
        overwrite=overwrite,
        image_format=image_format,
        qcow2_options=qcow2_options,
        own_luks=own_luks,
    )
    specs = _specs(sections)
    needed = container_size(specs, block_size=block_size, free=free)
    with new_image(new, needed) as image:
        layers = image.layers
        initialise(layers.payload, specs, encrypted=encrypted, block_size=block_size, random=random)
        store = Store.on_device(
            layers.payload,
            encrypted=encrypted,
            image=layers.image(),
            layers=layers,
            resources=image.hand_over(),
        )
        if fill:
            fill(store)
    return store


def _specs(sections: Sections) -> list[SectionSpec]:
    from blobstore.container.initialise import SectionSpec  # noqa: PLC0415  not needed to open

    if isinstance(sections, Mapping):
        return [SectionSpec(name, max_size) for name, max_size in sections.items()]
    return list(sections)


#: Its public name, which is that of the package.
create = create_store
