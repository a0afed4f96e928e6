"""Making an independent store with the same sections: `blobstore clone`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blobstore.description import kind_of
from blobstore.layers import QCOW2
from blobstore.layout import SectionSpec
from blobstore.stack import create_store
from formats.errors import ArgumentError
from formats.file import is_same_file

if TYPE_CHECKING:
    import os

    import luks
    from blobstore.image import Image
    from blobstore.store import Store


def clone(
    source: Store,
    destination: str | os.PathLike[str],
    secret: bytes | luks.Secret | None = None,
    **options: Any,
) -> Store:
    """Make a new image with the sections and blobs of a store, and open it.

    Unlike a copy it is a store of its own: with a new store id, a new key that
    authenticates it, and, if it is encrypted, a new volume key. So neither can be
    taken for the other, and parts of one are no replay in the other. Older
    copies of blobs are not taken along. A qcow2 image becomes another one, encrypted
    by itself if that one is, without its snapshots.

    Args:
        source: Not modified. Its sections are read one at a time.
        destination: The new image, which appears whole or not at all.
        secret: Passphrase or content of a key file of the new image; None makes
            one in the clear.
        options: Further ones of `blobstore.create`, such as ``size``.

    Raises:
        CorruptBlobError: A blob of the source does not verify.
        ImageExistsError, ForeignImageError, NoSpaceError, DeviceError,
        ValueError: As `blobstore.create`.
    """
    image, header = source.image, options.get("header")
    if image and any(
        written and read and is_same_file(written, read)
        for written in (destination, header)
        for read in (image.path, image.header_path)
    ):
        raise ArgumentError("a clone takes neither the place of the image nor of its header")

    def fill(store: Store) -> None:
        for section in source.sections():
            if section.size is not None:
                store.put(section.name, source.get(section.name))

    specs = [
        SectionSpec(
            section.name, section.max_size, kind_of(section.kind), section.copies, section.type
        )
        for section in source.sections()
    ]
    options = (
        {"block_size": source.info().block_size, "encrypted": secret is not None}
        | _kind(image, encrypted=secret is not None, detached=header is not None)
        | options
    )
    return create_store(destination, specs, secret, fill=fill, **options)


def _kind(image: Image | None, *, encrypted: bool, detached: bool) -> dict[str, Any]:
    """Return what `blobstore.create` is told to make an image of the same kind."""
    if image is None or image.format != QCOW2:
        return {}
    from formats.qcow2.creation import Options  # noqa: PLC0415  not for raw ones

    assert image.cluster_size, "a qcow2 image has clusters"
    return {
        "image_format": QCOW2,
        "own_luks": image.luks_beside and encrypted and not detached,
        "qcow2_options": Options(cluster_size=image.cluster_size),
    }
