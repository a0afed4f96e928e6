"""Small stores on devices in memory, and what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.container.initialise import SectionSpec, container_size, initialise
from blobstore.errors import CorruptBlobError, UnwrittenBlobError
from blobstore.store.store import Store
from formats.devices.device import MemoryDevice

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blobstore.store.description import StateDigest
    from blobstore.store.protocol import AnyStore
    from formats.devices.device import BlockDevice, ReadableBuffer

#: What `contents` says of a section that has no readable blob.
UNWRITTEN, CORRUPT = "unwritten", "corrupt"

Contents = dict[str, bytes | str]


def image(
    specs: Iterable[SectionSpec] = (),
    *,
    block_size: int = 512,
    free: int = 0,
    encrypted: bool = True,
) -> bytes:
    """Return a closed store of these sections with so many free bytes."""
    specs = tuple(specs)
    device = MemoryDevice(container_size(specs, block_size=block_size, free=free))
    initialise(device, specs, encrypted=encrypted, block_size=block_size)
    return bytes(device.content)


def spec(
    name: str, max_size: int, content: ReadableBuffer | None = None, **more: int
) -> SectionSpec:
    """Return a section to be made, of two copies unless ``copies`` says otherwise."""
    return SectionSpec(name, max_size, content=content, **more)  # type: ignore[arg-type]


def open_store(
    content: BlockDevice | bytes,
    *,
    read_only: bool = False,
    expect_digest: StateDigest | None = None,
    at_least_generation: int = 0,
    allow_damaged: bool = False,
) -> Store:
    """Open a store on a device, or on memory with these bytes."""
    device = MemoryDevice(content) if isinstance(content, bytes) else content
    return Store.on_device(
        device,
        encrypted=read_encrypted(device),
        read_only=read_only,
        expect_digest=expect_digest,
        at_least_generation=at_least_generation,
        allow_damaged=allow_damaged,
    )


def read_encrypted(device: BlockDevice) -> bool:
    """Return what the container on a device says of the device's encryption."""
    from blobstore.container.scan import _read_headers

    # Not by `scan`, which would try to mend every damaged head only to answer this.
    _, attesting = _read_headers(device, None)
    return max(filter(None, attesting), key=lambda header: header.sequence).encrypted


def contents(store: AnyStore) -> Contents:
    """Return every section's blob, or UNWRITTEN or CORRUPT; of a damaged store what has a name."""
    found: Contents = {}
    for name in filter(None, [section.name for section in store.sections(allow_damaged=True)]):
        try:
            found[name] = store.get(name)
        except UnwrittenBlobError:
            found[name] = UNWRITTEN
        except CorruptBlobError:
            found[name] = CORRUPT
    return found
