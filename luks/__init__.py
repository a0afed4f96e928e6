"""LUKS1 and LUKS2 volumes as cryptsetup and QEMU write and read them.

    with luks.format("disk.img", b"passphrase", size=64 << 20) as volume:
        volume.write(0, b"hello")
        volume.flush()

    with luks.open("disk.img", b"passphrase") as volume:
        volume.read(0, 5)

It needs no root rights, no device-mapper and no other program. `load_header` reads a
volume's header without a secret. All errors are `StorageError`s (`luks.errors`); rules
and limits are in ``spec/luks.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import formats

#: Identifies this `luks` as the one of this project (spec/decisions/0001).
DISTRIBUTION: Final = "device-blobstore"

if getattr(formats, "DISTRIBUTION", None) != DISTRIBUTION:
    raise ImportError(
        f"the package 'formats' in {getattr(formats, '__file__', None)} is not the one of"
        f" {DISTRIBUTION}: another distribution of that name is in the way"
    )

# The public names, once: type checkers read the block below, and so does
# `formats.public_names`, which imports each name when it is first used.
if TYPE_CHECKING:
    __all__: list[str]

    from luks.crypto.kdf import KdfLimits as KdfLimits
    from luks.errors import DeviceBusyError as DeviceBusyError
    from luks.errors import DeviceError as DeviceError
    from luks.errors import DeviceFullError as DeviceFullError
    from luks.errors import EmptyImageError as EmptyImageError
    from luks.errors import ForeignImageError as ForeignImageError
    from luks.errors import ForkedProcessError as ForkedProcessError
    from luks.errors import FormatError as FormatError
    from luks.errors import HeaderMismatchError as HeaderMismatchError
    from luks.errors import ImageReplacedError as ImageReplacedError
    from luks.errors import KeyslotInUseError as KeyslotInUseError
    from luks.errors import KeyslotsFullError as KeyslotsFullError
    from luks.errors import LuksExistsError as LuksExistsError
    from luks.errors import LuksHeaderError as LuksHeaderError
    from luks.errors import NoKeyslotMatchError as NoKeyslotMatchError
    from luks.errors import NoReencryptionError as NoReencryptionError
    from luks.errors import PolicyError as PolicyError
    from luks.errors import ReadOnlyError as ReadOnlyError
    from luks.errors import SecretFormatError as SecretFormatError
    from luks.errors import SecretObjectError as SecretObjectError
    from luks.errors import SecretRequiredError as SecretRequiredError
    from luks.errors import StorageError as StorageError
    from luks.errors import TruncatedImageError as TruncatedImageError
    from luks.errors import UnfinishedReencryptionError as UnfinishedReencryptionError
    from luks.errors import UnlockError as UnlockError
    from luks.errors import UnsupportedError as UnsupportedError
    from luks.header.detection import Place as Place
    from luks.header.detection import is_luks as is_luks
    from luks.header.load import load_header as load_header
    from luks.header.load import open_header as open_header
    from luks.header.policy import Policy as Policy
    from luks.header.policy import header_digest as header_digest
    from luks.header.repair_copy import repair as repair
    from luks.keys.benchmark import benchmark_kdf as benchmark_kdf
    from luks.keys.keyslots import VolumeKey as VolumeKey
    from luks.keys.keyslots import unbound_key as unbound_key
    from luks.keys.keyslots import unlock as unlock
    from luks.keys.keyslots import verify_volume_key as verify_volume_key
    from luks.keys.reencryption import VolumeKeys as VolumeKeys
    from luks.keys.reencryption import unlock_all as unlock_all
    from luks.keys.throughput import CipherSpeed as CipherSpeed
    from luks.keys.throughput import benchmark_ciphers as benchmark_ciphers
    from luks.keys.throughput import benchmark_kdfs as benchmark_kdfs
    from luks.manage.amending import amend as amend
    from luks.manage.backup import backup_header as backup_header
    from luks.manage.backup import restore_header as restore_header
    from luks.manage.converting import convert_header as convert_header
    from luks.manage.dump import describe_header as describe_header
    from luks.manage.editing import HeaderEdit as HeaderEdit
    from luks.manage.editing import edit as edit
    from luks.manage.move import attach_header as attach_header
    from luks.manage.move import destroy_keys as destroy_keys
    from luks.manage.move import detach_header as detach_header
    from luks.manage.one_keyslot import add_keyslot as add_keyslot
    from luks.manage.one_keyslot import change_keyslot as change_keyslot
    from luks.manage.one_keyslot import remove_keyslot as remove_keyslot
    from luks.manage.tokens import format_token as format_token
    from luks.manage.tokens import keyring_token as keyring_token
    from luks.manage.tokens import parse_token as parse_token
    from luks.manage.tokens import token_name as token_name
    from luks.manage.tokens import token_secret as token_secret
    from luks.model import Area as Area
    from luks.model import Argon2 as Argon2
    from luks.model import Digest as Digest
    from luks.model import Header as Header
    from luks.model import KdfCost as KdfCost
    from luks.model import Keyslot as Keyslot
    from luks.model import Pbkdf2 as Pbkdf2
    from luks.model import Segment as Segment
    from luks.model import Token as Token
    from luks.payload.creation import format as format  # noqa: A004
    from luks.payload.opening import open as open  # noqa: A004
    from luks.payload.options import FormatOptions as FormatOptions
    from luks.payload.profiles import PROFILES as PROFILES
    from luks.payload.volume import Volume as Volume
    from luks.reencryption.interface import Reencryption as Reencryption
    from luks.reencryption.interface import ReencryptionOptions as ReencryptionOptions
    from luks.reencryption.interface import ReencryptionStatus as ReencryptionStatus
    from luks.reencryption.operations import abort_reencryption as abort_reencryption
    from luks.reencryption.operations import begin_decryption as begin_decryption
    from luks.reencryption.operations import begin_encryption as begin_encryption
    from luks.reencryption.operations import begin_reencryption as begin_reencryption
    from luks.reencryption.operations import decrypt as decrypt
    from luks.reencryption.operations import encrypt as encrypt
    from luks.reencryption.operations import reencrypt as reencrypt
    from luks.reencryption.operations import reencryption_status as reencryption_status
    from luks.reencryption.operations import resume_reencryption as resume_reencryption
    from luks.secret.randomness import SeededSource as SeededSource
    from luks.secret.secret_objects import SecretObject as SecretObject
    from luks.secret.secret_objects import SecretObjects as SecretObjects
    from luks.secret.secrets import MAX_KEY_FILE_SIZE as MAX_KEY_FILE_SIZE
    from luks.secret.secrets import Secret as Secret
else:
    __all__, __getattr__, __dir__ = formats.public_names(__name__, __file__)
