"""LUKS1 and LUKS2 volumes as cryptsetup and QEMU write and read them.

    with luks.format("disk.img", b"passphrase", size=64 << 20) as volume:
        volume.write(0, b"hello")
        volume.flush()

    with luks.open("disk.img", b"passphrase") as volume:
        volume.read(0, 5)

No root, no device-mapper, no other program is needed. `load_header` looks at a
volume without a secret. All errors are `StorageError`s (`luks.errors`); rules and
limits are in ``spec/luks.md``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import formats

if TYPE_CHECKING:
    from luks.amending import amend
    from luks.benchmark import benchmark_kdf
    from luks.creation import format  # noqa: A004
    from luks.detection import is_luks
    from luks.dump import describe_header
    from luks.errors import (
        DeviceBusyError,
        DeviceError,
        DeviceFullError,
        EmptyImageError,
        ForeignImageError,
        ForkedProcessError,
        FormatError,
        HeaderMismatchError,
        ImageReplacedError,
        KeyslotInUseError,
        KeyslotsFullError,
        LuksExistsError,
        LuksHeaderError,
        NoKeyslotMatchError,
        PolicyError,
        ReadOnlyError,
        SecretFormatError,
        SecretObjectError,
        SecretRequiredError,
        StorageError,
        TruncatedImageError,
        UnlockError,
        UnsupportedError,
    )
    from luks.header_backup import backup_header, restore_header
    from luks.header_move import attach_header, destroy_keys, detach_header
    from luks.kdf import KdfLimits
    from luks.key_changes import add_keyslot, change_keyslot, remove_keyslot
    from luks.keyslots import VolumeKey, unlock, verify_volume_key
    from luks.load import load_header, open_header
    from luks.model import (
        Area,
        Argon2,
        Digest,
        Header,
        KdfCost,
        Keyslot,
        Pbkdf2,
        Segment,
        Token,
    )
    from luks.policy import Policy, header_digest
    from luks.profiles import PROFILES
    from luks.randomness import SeededSource
    from luks.recovery import repair
    from luks.secret_objects import SecretObject, SecretObjects
    from luks.secrets import Secret
    from luks.tokens import (
        format_token,
        keyring_token,
        parse_token,
        token_name,
        token_secret,
    )
    from luks.transaction import Transaction, edit
    from luks.volume import Volume, open  # noqa: A004

__all__ = [
    "PROFILES",
    "Area",
    "Argon2",
    "DeviceBusyError",
    "DeviceError",
    "DeviceFullError",
    "Digest",
    "EmptyImageError",
    "ForeignImageError",
    "ForkedProcessError",
    "FormatError",
    "Header",
    "HeaderMismatchError",
    "ImageReplacedError",
    "KdfCost",
    "KdfLimits",
    "Keyslot",
    "KeyslotInUseError",
    "KeyslotsFullError",
    "LuksExistsError",
    "LuksHeaderError",
    "NoKeyslotMatchError",
    "Pbkdf2",
    "Policy",
    "PolicyError",
    "ReadOnlyError",
    "Secret",
    "SecretFormatError",
    "SecretObject",
    "SecretObjectError",
    "SecretObjects",
    "SecretRequiredError",
    "SeededSource",
    "Segment",
    "StorageError",
    "Token",
    "Transaction",
    "TruncatedImageError",
    "UnlockError",
    "UnsupportedError",
    "Volume",
    "VolumeKey",
    "add_keyslot",
    "amend",
    "attach_header",
    "backup_header",
    "benchmark_kdf",
    "change_keyslot",
    "describe_header",
    "destroy_keys",
    "detach_header",
    "edit",
    "format",
    "format_token",
    "header_digest",
    "is_luks",
    "keyring_token",
    "load_header",
    "open",
    "open_header",
    "parse_token",
    "remove_keyslot",
    "repair",
    "restore_header",
    "token_name",
    "token_secret",
    "unlock",
    "verify_volume_key",
]

#: Tells others that this `luks` is ours (spec/decisions/0001).
DISTRIBUTION: Final = "device-blobstore"

if getattr(formats, "DISTRIBUTION", None) != DISTRIBUTION:
    raise ImportError(
        f"the package 'formats' in {getattr(formats, '__file__', None)} is not the one of"
        f" {DISTRIBUTION}: another distribution of that name is in the way"
    )

# Which module defines each name: they are imported when first used, so that
# `import luks` costs nothing.
_HOMES: Final = {
    "luks.amending": ("amend",),
    "luks.benchmark": ("benchmark_kdf",),
    "luks.creation": ("format",),
    "luks.dump": ("describe_header",),
    "luks.header_backup": ("backup_header", "restore_header"),
    "luks.header_move": ("attach_header", "destroy_keys", "detach_header"),
    "luks.kdf": ("KdfLimits",),
    "luks.key_changes": ("add_keyslot", "change_keyslot", "remove_keyslot"),
    "luks.keyslots": ("VolumeKey", "unlock", "verify_volume_key"),
    "luks.detection": ("is_luks",),
    "luks.load": ("load_header", "open_header"),
    "luks.model": (
        "Area",
        "Argon2",
        "Digest",
        "Header",
        "KdfCost",
        "Keyslot",
        "Pbkdf2",
        "Segment",
        "Token",
    ),
    "luks.policy": ("Policy", "header_digest"),
    "luks.profiles": ("PROFILES",),
    "luks.randomness": ("SeededSource",),
    "luks.recovery": ("repair",),
    "luks.secret_objects": ("SecretObject", "SecretObjects"),
    "luks.secrets": ("Secret",),
    "luks.tokens": (
        "format_token",
        "keyring_token",
        "parse_token",
        "token_name",
        "token_secret",
    ),
    "luks.transaction": ("Transaction", "edit"),
    "luks.volume": ("Volume", "open"),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF.get(name, "luks.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
