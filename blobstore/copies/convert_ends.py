"""The two ends of a conversion as values: what is read, and what is made or written into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from blobstore.image.creation import NewImage
from blobstore.image.layers import open_layers
from formats.errors import ArgumentError, DeviceFullError, EmptyImageError
from luks.errors import PolicyError
from luks.payload.options import FormatKeywords, FormatOptions, require_format_keywords

if TYPE_CHECKING:
    import os
    from contextlib import ExitStack

    import luks
    from blobstore.copies.convert_kinds import ImageKind
    from blobstore.image.layers import Layers
    from blobstore.store.description import StateDigest
    from formats.qcow2.creation import Qcow2Options
    from formats.qcow2.opening import BackingOpener
    from formats.qcow2.snapshot_table import SnapshotKey

    AnyPath = str | os.PathLike[str]

_SECTOR_SIZE: Final = 512
_LARGE_SECTOR_SIZE: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The image that is converted, and what is demanded of it.

    Attributes:
        path: Of the image.
        secret: Opens it, if it is encrypted.
        header: File of its detached LUKS header.
        image_format: What it is: ``"raw"`` or ``"qcow2"``; None finds out.
        encrypted: Whether there is a LUKS volume in it; likewise.
        snapshot: The internal snapshot to convert, of a qcow2 image.
        open_backing: Opens backing files; None refuses them.
        lock: Keep writers out.
        allow_unprotected: Take a store that is less protected than it should be (C25).
        expect_digest: What `Store.digest` said of the state that it must be in.
        at_least_generation: The generation that it must have reached.
        limits: As `open_layers`.
    """

    path: AnyPath
    secret: bytes | luks.Secret | luks.VolumeKey | None = field(default=None, repr=False)
    header: AnyPath | None = None
    image_format: str | None = None
    encrypted: bool | None = None
    snapshot: str | SnapshotKey | None = None
    open_backing: BackingOpener | None = None
    lock: bool = True
    allow_unprotected: bool = False
    expect_digest: StateDigest | None = None
    at_least_generation: int = 0
    limits: luks.KdfLimits | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether it has to be a store, in a state that was said."""
        return self.expect_digest is not None or bool(self.at_least_generation)

    def open(self, resources: ExitStack) -> Layers:
        """Open it for reading; errors as `blobstore.image.layers.open_layers`.

        Raises:
            PolicyError: There is a secret, and the image is not encrypted (C25).
        """
        layers = open_layers(
            resources,
            self.path,
            self.secret,
            header=self.header,
            lock=self.lock,
            image_format=self.image_format,
            encrypted=self.encrypted,
            open_backing=self.open_backing,
            snapshot=self.snapshot,
            limits=self.limits,
        )
        if not self.allow_unprotected:
            _require_encrypted(layers, self.secret)
        return layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """The image that a conversion makes.

    Attributes:
        path: Of the image.
        secret: What is to open it; None for an image in the clear.
        header: File that gets its LUKS header, detached.
        kind: What it becomes; None for what the source is.
        overwrite: Replace what is there.
        qcow2_options: Of `formats.qcow2.creation.create`.
        luks: Fields of `luks.FormatOptions`, but for what follows from the source.

    Raises:
        TypeError: ``luks`` has an option that there is not.
        ArgumentError, PolicyError, UnsupportedError: There cannot be such an image,
            as far as that is known before the source is.
    """

    path: AnyPath
    secret: bytes | luks.Secret | None = field(default=None, repr=False)
    header: AnyPath | None = None
    kind: ImageKind | None = None
    overwrite: bool = False
    qcow2_options: Qcow2Options | None = None
    luks: FormatKeywords = field(default_factory=FormatKeywords, repr=False)

    def __post_init__(self) -> None:
        require_format_keywords("blobstore.convert", self.luks)
        if self.kind is not None:
            self._new_image(self.kind, self._options(self.kind))

    def image(self, kind: ImageKind, size: int, block_size: int) -> NewImage:
        """Return what the image is to be for a payload.

        Args:
            kind: What the source is, for a destination that has no kind.
            size: Bytes of the payload.
            block_size: Its parts are whole blocks of so many bytes.

        Raises:
            EmptyImageError: It has no bytes, and LUKS needs some.
            ArgumentError, PolicyError, UnsupportedError: There cannot be such an image.
        """
        kind = self.kind or kind
        options = self._options(kind, size, block_size)
        new = self._new_image(kind, options)
        if options is not None and not size:
            raise EmptyImageError("there is nothing in the image that could be encrypted")
        return new

    def _new_image(self, kind: ImageKind, options: FormatOptions | None) -> NewImage:
        if self.luks and options is None:
            raise ArgumentError(
                f"an image in the clear does not have {', '.join(self.luks)}: LUKS has"
            )
        return NewImage(
            path=self.path,
            secret=self.secret,
            luks=options,
            header=self.header,
            overwrite=self.overwrite,
            image_format=kind.image_format,
            qcow2_options=self.qcow2_options,
            own_luks=kind.own_luks,
        )

    def _options(
        self, kind: ImageKind, size: int = 0, block_size: int = _SECTOR_SIZE
    ) -> FormatOptions | None:
        """Return how the volume is made; sectors are large where they fit the payload."""
        if not kind.encrypted:
            return None
        version = kind.luks_version or 1
        wanted = self.luks.get("version", version)
        if wanted != version:
            raise ArgumentError(f"version {wanted} is not that of the image, which is {version}")
        keywords: FormatKeywords = {**self.luks, "version": version}
        if version > 1 and keywords.get("sector_size") is None:
            large = size % _LARGE_SECTOR_SIZE == 0 and block_size >= _LARGE_SECTOR_SIZE
            keywords["sector_size"] = _LARGE_SECTOR_SIZE if large else _SECTOR_SIZE
        return FormatOptions(**keywords)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistingDestination:
    """An image that exists, into whose payload a conversion writes, in place.

    Attributes:
        path: Of the image.
        secret: Opens it, if it is encrypted.
        header: File of its detached LUKS header.
        limits: As `open_layers`.
    """

    path: AnyPath
    secret: bytes | luks.Secret | None = field(default=None, repr=False)
    header: AnyPath | None = None
    limits: luks.KdfLimits | None = None

    def open(self, resources: ExitStack, needed: int) -> Layers:
        """Open it for writing; errors as `blobstore.image.layers.open_layers`.

        Raises:
            PolicyError: There is a secret, and the image is not encrypted (C25).
            DeviceFullError: Its payload has less than ``needed`` bytes.
        """
        layers = open_layers(
            resources,
            self.path,
            self.secret,
            header=self.header,
            read_only=False,
            limits=self.limits,
        )
        _require_encrypted(layers, self.secret)
        if layers.payload.size < needed:
            raise DeviceFullError(
                f"the payload of {self.path} has {layers.payload.size} bytes; {needed} are needed"
            )
        return layers


def _require_encrypted(layers: Layers, secret: object) -> None:
    if secret is not None and not layers.encrypted:
        raise PolicyError(f"a secret was given for {layers.path}, which is not encrypted [C25]")
