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
    from luks.crypto.kdf import KdfLimits
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
    from luks.header.detection import is_luks
    from luks.header.load import load_header, open_header
    from luks.header.policy import Policy, header_digest
    from luks.header.repair_copy import repair
    from luks.keys.benchmark import benchmark_kdf
    from luks.keys.keyslots import VolumeKey, unlock, verify_volume_key
    from luks.manage.amending import amend
    from luks.manage.backup import backup_header, restore_header
    from luks.manage.dump import describe_header
    from luks.manage.editing import HeaderEdit, edit
    from luks.manage.move import attach_header, destroy_keys, detach_header
    from luks.manage.one_keyslot import add_keyslot, change_keyslot, remove_keyslot
    from luks.manage.tokens import (
        format_token,
        keyring_token,
        parse_token,
        token_name,
        token_secret,
    )
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
    from luks.payload.creation import format  # noqa: A004
    from luks.payload.options import FormatOptions
    from luks.payload.profiles import PROFILES
    from luks.payload.volume import Volume, open  # noqa: A004
    from luks.secret.randomness import SeededSource
    from luks.secret.secret_objects import SecretObject, SecretObjects
    from luks.secret.secrets import Secret

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
    "FormatOptions",
    "Header",
    "HeaderEdit",
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
    "luks.manage.amending": ("amend",),
    "luks.keys.benchmark": ("benchmark_kdf",),
    "luks.payload.creation": ("format",),
    "luks.payload.options": ("FormatOptions",),
    "luks.manage.dump": ("describe_header",),
    "luks.manage.backup": ("backup_header", "restore_header"),
    "luks.manage.move": ("attach_header", "destroy_keys", "detach_header"),
    "luks.crypto.kdf": ("KdfLimits",),
    "luks.manage.one_keyslot": ("add_keyslot", "change_keyslot", "remove_keyslot"),
    "luks.keys.keyslots": ("VolumeKey", "unlock", "verify_volume_key"),
    "luks.header.detection": ("is_luks",),
    "luks.header.load": ("load_header", "open_header"),
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
    "luks.header.policy": ("Policy", "header_digest"),
    "luks.payload.profiles": ("PROFILES",),
    "luks.secret.randomness": ("SeededSource",),
    "luks.header.repair_copy": ("repair",),
    "luks.secret.secret_objects": ("SecretObject", "SecretObjects"),
    "luks.secret.secrets": ("Secret",),
    "luks.manage.tokens": (
        "format_token",
        "keyring_token",
        "parse_token",
        "token_name",
        "token_secret",
    ),
    "luks.manage.editing": ("HeaderEdit", "edit"),
    "luks.payload.volume": ("Volume", "open"),
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
