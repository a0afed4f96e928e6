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

from typing import TYPE_CHECKING, Final

import formats
import luks

__version__ = "0.1.0"

#: What `formats` and `luks` must say too (spec/decisions/0001).
DISTRIBUTION: Final = "device-blobstore"

for _package in (formats, luks):
    if getattr(_package, "DISTRIBUTION", None) != DISTRIBUTION:
        raise ImportError(
            f"the package {_package.__name__!r} in {getattr(_package, '__file__', None)} is not"
            f" the one of {DISTRIBUTION}: another distribution of that name is in the way"
        )

# The public names, once: type checkers read the block below, and so does
# `formats.public_names`, which imports each name when it is first used.
if TYPE_CHECKING:
    __all__: list[str]

    from blobstore.container.initialise import SectionSpec as SectionSpec
    from blobstore.container.initialise import initialise as initialise
    from blobstore.container.recent import SectionChange as SectionChange
    from blobstore.container.regions import Region as Region
    from blobstore.container.verification import Problem as Problem
    from blobstore.container.verification import Report as Report
    from blobstore.copies.backup import backup as backup
    from blobstore.copies.clone import clone as clone
    from blobstore.copies.compare import Difference as Difference
    from blobstore.copies.compare import SectionState as SectionState
    from blobstore.copies.compare import compare as compare
    from blobstore.copies.convert import convert as convert
    from blobstore.copies.convert_kinds import IMAGE_KINDS as IMAGE_KINDS
    from blobstore.copies.convert_kinds import ImageKind as ImageKind
    from blobstore.copies.whole import Copied as Copied
    from blobstore.copies.whole import copy as copy
    from blobstore.errors import BlobNotFoundError as BlobNotFoundError
    from blobstore.errors import BlobTooLargeError as BlobTooLargeError
    from blobstore.errors import ConfigError as ConfigError
    from blobstore.errors import CorruptBlobError as CorruptBlobError
    from blobstore.errors import CorruptStoreError as CorruptStoreError
    from blobstore.errors import DamagedHeadError as DamagedHeadError
    from blobstore.errors import GenerationMismatchError as GenerationMismatchError
    from blobstore.errors import ImageExistsError as ImageExistsError
    from blobstore.errors import ManifestError as ManifestError
    from blobstore.errors import MovedImageError as MovedImageError
    from blobstore.errors import NoPreviousBlobError as NoPreviousBlobError
    from blobstore.errors import NoSpaceError as NoSpaceError
    from blobstore.errors import OutputExistsError as OutputExistsError
    from blobstore.errors import PinMismatchError as PinMismatchError
    from blobstore.errors import PoisonedStoreError as PoisonedStoreError
    from blobstore.errors import SectionExistsError as SectionExistsError
    from blobstore.errors import SectionMismatchError as SectionMismatchError
    from blobstore.errors import StateAuthenticationError as StateAuthenticationError
    from blobstore.errors import StoreBusyError as StoreBusyError
    from blobstore.errors import StoreError as StoreError
    from blobstore.errors import UnfinishedCopyError as UnfinishedCopyError
    from blobstore.errors import UnwrittenBlobError as UnwrittenBlobError
    from blobstore.foreign.certificates import Signatures as Signatures
    from blobstore.foreign.encryption import StateKey as StateKey
    from blobstore.foreign.exporting import export_state as export_state
    from blobstore.foreign.importing import import_state as import_state
    from blobstore.foreign.key_source import StateKeySource as StateKeySource
    from blobstore.foreign.states import StateFormat as StateFormat
    from blobstore.foreign.variable_stores import edit_variables as edit_variables
    from blobstore.foreign.variable_stores import edit_variables_file as edit_variables_file
    from blobstore.foreign.variable_stores import holds_variables as holds_variables
    from blobstore.foreign.variable_stores import read_variables as read_variables
    from blobstore.foreign.variable_stores import read_variables_file as read_variables_file
    from blobstore.foreign.variables import UefiVariables as UefiVariables
    from blobstore.image.disks import apply_snapshot as apply_snapshot
    from blobstore.image.disks import check as check
    from blobstore.image.disks import create_snapshot as create_snapshot
    from blobstore.image.disks import delete_snapshot as delete_snapshot
    from blobstore.image.disks import list_snapshots as list_snapshots
    from blobstore.image.disks import measure as measure
    from blobstore.image.files import is_same_file as is_same_file
    from blobstore.image.files import write_file as write_file
    from blobstore.image.image import Image as Image
    from blobstore.image.info import ImageInfo as ImageInfo
    from blobstore.image.info import LuksInfo as LuksInfo
    from blobstore.image.layers import is_encrypted as is_encrypted
    from blobstore.image.layers import qcow2_options as qcow2_options
    from blobstore.image.luks_header import attach_header as attach_header
    from blobstore.image.luks_header import convert_header as convert_header
    from blobstore.image.luks_header import detach_header as detach_header
    from blobstore.image.luks_header import luks_place as luks_place
    from blobstore.image.place import Place as Place
    from blobstore.image.place import RemotePlace as RemotePlace
    from blobstore.image.place import for_luks as for_luks
    from blobstore.image.place import place_of as place_of
    from blobstore.image.remote.nbd_disk import NbdDisk as NbdDisk
    from blobstore.image.remote.places import open_remote as open_remote
    from blobstore.image.remote.rbd_disk import RbdDisk as RbdDisk
    from blobstore.manifests.fields import DecodedBlob as DecodedBlob
    from blobstore.manifests.fields import decode_blob as decode_blob
    from blobstore.manifests.fields import decode_file as decode_file
    from blobstore.manifests.fields import decode_section as decode_section
    from blobstore.manifests.fields import edit_blob as edit_blob
    from blobstore.manifests.fields import edit_file as edit_file
    from blobstore.manifests.fields import edit_section as edit_section
    from blobstore.manifests.judging import ContentProblem as ContentProblem
    from blobstore.manifests.judging import check_contents as check_contents
    from blobstore.manifests.judging import likely_types as likely_types
    from blobstore.manifests.judging import type_of_file as type_of_file
    from blobstore.manifests.layouts import load_layout as load_layout
    from blobstore.manifests.loading import ManifestFile as ManifestFile
    from blobstore.manifests.loading import load_manifest as load_manifest
    from blobstore.manifests.manifest import Manifest as Manifest
    from blobstore.manifests.pack import pack as pack
    from blobstore.manifests.pack import pack_raw as pack_raw
    from blobstore.manifests.pack import pack_table as pack_table
    from blobstore.manifests.schema import manifest_schema as manifest_schema
    from blobstore.manifests.sizes import format_size as format_size
    from blobstore.manifests.sizes import parse_size as parse_size
    from blobstore.manifests.tables import UnitTable as UnitTable
    from blobstore.manifests.unpack import Unpacked as Unpacked
    from blobstore.manifests.unpack import unpack as unpack
    from blobstore.nbd.credentials import NbdTls as NbdTls
    from blobstore.nbd.exports import NbdDevice as NbdDevice
    from blobstore.nbd.exports import NbdSections as NbdSections
    from blobstore.nbd.exports import NbdVolume as NbdVolume
    from blobstore.nbd.server import NbdServer as NbdServer
    from blobstore.nbd.settings import NbdSettings as NbdSettings
    from blobstore.nbd.sockets import parse_nbd_address as parse_nbd_address
    from blobstore.opening import create as create
    from blobstore.reaching import find_owner as find_owner
    from blobstore.reaching import open as open  # noqa: A004
    from blobstore.reencryption.operations import abort_reencryption as abort_reencryption
    from blobstore.reencryption.operations import begin_decryption as begin_decryption
    from blobstore.reencryption.operations import begin_encryption as begin_encryption
    from blobstore.reencryption.operations import begin_reencryption as begin_reencryption
    from blobstore.reencryption.operations import decrypt as decrypt
    from blobstore.reencryption.operations import encrypt as encrypt
    from blobstore.reencryption.operations import reencrypt as reencrypt
    from blobstore.reencryption.operations import reencryption_status as reencryption_status
    from blobstore.reencryption.operations import resume_reencryption as resume_reencryption
    from blobstore.reencryption.running import ImageReencryption as ImageReencryption
    from blobstore.store.changes import ChangeWatch as ChangeWatch
    from blobstore.store.changes import CommitInfo as CommitInfo
    from blobstore.store.description import SectionInfo as SectionInfo
    from blobstore.store.description import StateDigest as StateDigest
    from blobstore.store.description import StoreInfo as StoreInfo
    from blobstore.store.payload import Payload as Payload
    from blobstore.store.protocol import AnyStore as AnyStore
    from blobstore.store.protocol import Changes as Changes
    from blobstore.store.store import Store as Store
    from blobstore.store.transaction import Transaction as Transaction
    from blobstore.store.windows.sharing import SharedWindow as SharedWindow
    from blobstore.store.windows.window import Window as Window
    from formats.eeprom.layouts.codec import DeclaredCodec as DeclaredCodec
    from formats.errors import ForkedProcessError as ForkedProcessError
    from formats.errors import ImageReplacedError as ImageReplacedError
    from formats.errors import StorageError as StorageError
    from formats.qcow2.creation import Qcow2Options as Qcow2Options
    from formats.qcow2.files import BackingFiles as BackingFiles
    from formats.qcow2.measure import Measure as Measure
    from formats.qcow2.report import CheckReport as CheckReport
    from formats.qcow2.snapshot_table import Snapshot as Snapshot
    from formats.qcow2.snapshot_table import SnapshotKey as SnapshotKey
    from formats.state.uefi.flaws import Flaw as Flaw
    from formats.state.uefi_vars import UefiVariable as UefiVariable
else:
    __all__, __getattr__, __dir__ = formats.public_names(__name__, __file__)
