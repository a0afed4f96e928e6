"""Named blobs of device state in one crash-safe, encrypted image.

    sections = {"tpm-permanent-state": 256 << 10}
    with blobstore.create("machine.img", sections, b"passphrase") as store:
        store.put("tpm-permanent-state", state)      # atomic, and durable on return

    with blobstore.open("machine.img", b"passphrase") as store:
        store.register("tpm-permanent-state", 256 << 10)
        state = store.get("tpm-permanent-state")

All errors are `StorageError`s (`blobstore.errors`). The format is specified in
``spec/container.md``; the encryption below is the package `luks`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import formats
import luks

if TYPE_CHECKING:
    from blobstore.container.initialise import SectionSpec, initialise
    from blobstore.container.regions import Region
    from blobstore.container.verification import Problem, Report
    from blobstore.copies.backup import backup
    from blobstore.copies.clone import clone
    from blobstore.copies.compare import Difference, SectionState, compare
    from blobstore.copies.convert import convert
    from blobstore.errors import (
        BlobNotFoundError,
        BlobTooLargeError,
        CorruptBlobError,
        CorruptStoreError,
        DamagedHeadError,
        ImageExistsError,
        ManifestError,
        NoPreviousBlobError,
        NoSpaceError,
        OutputExistsError,
        PinMismatchError,
        PoisonedStoreError,
        SectionExistsError,
        SectionMismatchError,
        StateAuthenticationError,
        StoreBusyError,
        StoreError,
        UnwrittenBlobError,
    )
    from blobstore.foreign.encryption import StateKey
    from blobstore.foreign.exporting import export_state
    from blobstore.foreign.importing import import_state
    from blobstore.foreign.states import StateFormat
    from blobstore.image.image import Image
    from blobstore.image.layers import is_encrypted
    from blobstore.manifests.fields import DecodedBlob, decode_blob, edit_blob
    from blobstore.manifests.loading import ManifestFile, load_manifest
    from blobstore.manifests.manifest import Manifest
    from blobstore.manifests.pack import pack, pack_raw, pack_table
    from blobstore.manifests.tables import UnitTable
    from blobstore.manifests.unpack import Unpacked, unpack
    from blobstore.nbd.exports import NbdDevice, NbdSections
    from blobstore.nbd.server import NbdServer
    from blobstore.nbd.sockets import parse_nbd_address
    from blobstore.opening import create_store as create
    from blobstore.opening import open_store as open  # noqa: A004
    from blobstore.store.description import Digest, SectionInfo, StoreInfo
    from blobstore.store.store import Store
    from blobstore.store.transaction import Transaction
    from blobstore.store.windows.window import Window
    from formats.errors import ForkedProcessError, ImageReplacedError, StorageError
    from formats.qcow2.snapshot_table import SnapshotKey

__all__ = [
    "BlobNotFoundError",
    "BlobTooLargeError",
    "CorruptBlobError",
    "CorruptStoreError",
    "DamagedHeadError",
    "DecodedBlob",
    "Difference",
    "Digest",
    "ForkedProcessError",
    "Image",
    "ImageExistsError",
    "ImageReplacedError",
    "Manifest",
    "ManifestError",
    "ManifestFile",
    "NbdDevice",
    "NbdSections",
    "NbdServer",
    "NoPreviousBlobError",
    "NoSpaceError",
    "OutputExistsError",
    "PinMismatchError",
    "PoisonedStoreError",
    "Problem",
    "Region",
    "Report",
    "SectionExistsError",
    "SectionInfo",
    "SectionMismatchError",
    "SectionSpec",
    "SectionState",
    "SnapshotKey",
    "StateAuthenticationError",
    "StateFormat",
    "StateKey",
    "StorageError",
    "Store",
    "StoreBusyError",
    "StoreError",
    "StoreInfo",
    "Transaction",
    "UnitTable",
    "Unpacked",
    "UnwrittenBlobError",
    "Window",
    "backup",
    "clone",
    "compare",
    "convert",
    "create",
    "decode_blob",
    "edit_blob",
    "export_state",
    "import_state",
    "initialise",
    "is_encrypted",
    "load_manifest",
    "open",
    "pack",
    "pack_raw",
    "pack_table",
    "parse_nbd_address",
    "unpack",
]

__version__ = "0.1.0"

#: What `formats` and `luks` must say too (spec/decisions/0001).
DISTRIBUTION: Final = "device-blobstore"

for _package in (formats, luks):
    if getattr(_package, "DISTRIBUTION", None) != DISTRIBUTION:
        raise ImportError(
            f"the package {_package.__name__!r} in {getattr(_package, '__file__', None)} is not"
            f" the one of {DISTRIBUTION}: another distribution of that name is in the way"
        )

# Where each public name lives: modules are imported when they are first used,
# so that a command line that reads one blob pays for nothing else.
_HOMES: Final = {
    "blobstore.copies.convert": ("convert",),
    "blobstore.copies.backup": ("backup",),
    "blobstore.copies.clone": ("clone",),
    "blobstore.copies.compare": ("Difference", "SectionState", "compare"),
    "blobstore.manifests.fields": ("DecodedBlob", "decode_blob", "edit_blob"),
    "blobstore.store.description": ("Digest", "SectionInfo", "StoreInfo"),
    "blobstore.foreign.exporting": ("export_state",),
    "blobstore.foreign.states": ("StateFormat",),
    "blobstore.image.image": ("Image",),
    "blobstore.foreign.importing": ("import_state",),
    "blobstore.image.layers": ("is_encrypted",),
    "blobstore.container.initialise": ("SectionSpec", "initialise"),
    "blobstore.manifests.loading": ("ManifestFile", "load_manifest"),
    "blobstore.manifests.manifest": ("Manifest",),
    "blobstore.manifests.tables": ("UnitTable",),
    "blobstore.manifests.pack": ("pack", "pack_raw", "pack_table"),
    "blobstore.container.regions": ("Region",),
    "blobstore.nbd.exports": ("NbdDevice", "NbdSections"),
    "blobstore.nbd.server": ("NbdServer",),
    "blobstore.nbd.sockets": ("parse_nbd_address",),
    "blobstore.opening": ("create", "open"),
    "blobstore.foreign.encryption": ("StateKey",),
    "blobstore.store.store": ("Store",),
    "blobstore.store.transaction": ("Transaction",),
    "blobstore.manifests.unpack": ("Unpacked", "unpack"),
    "blobstore.container.verification": ("Problem", "Report"),
    "blobstore.store.windows.window": ("Window",),
    "formats.errors": ("ForkedProcessError", "ImageReplacedError", "StorageError"),
    "formats.qcow2.snapshot_table": ("SnapshotKey",),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}
_OTHER_NAMES: Final = {"create": "create_store", "open": "open_store"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOME_OF.get(name, "blobstore.errors"))
    value = getattr(home, _OTHER_NAMES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
