"""Errors of a LUKS volume, its header and its keys.

    StorageError                      1
    ├── FormatError                  30
    │   └── LuksHeaderError          35   the header breaks the LUKS specifications
    │       └── LuksExistsError      36   a LUKS header exists where one is to be made
    ├── UnlockError                  50   the volume cannot be unlocked
    │   ├── NoKeyslotMatchError      51   no keyslot opens with this secret
    │   ├── SecretRequiredError      52   no usable secret was given
    │   ├── SecretObjectError        55   the definition of a secret contradicts itself
    │   └── SecretFormatError        56   a secret does not match its definition
    ├── PolicyError                  53   a policy forbids the operation
    ├── KeyslotsFullError            54   the header has no room for another keyslot
    ├── NoReencryptionError          44   no re-encryption is in progress
    ├── UnfinishedReencryptionError  45   a re-encryption is in progress, and must end first
    ├── HeaderMismatchError          58   a header belongs to another volume
    └── KeyslotInUseError            59   the keyslot is active with another secret

Damage, a wrong passphrase, a foreign file and an unknown feature have different
classes: confusing them could destroy data. Importing this module does not import
cryptography.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.errors import (
    DeviceBusyError,
    DeviceError,
    DeviceFullError,
    EmptyImageError,
    ForeignImageError,
    ForkedProcessError,
    FormatError,
    ImageReplacedError,
    ReadOnlyError,
    StorageError,
    TruncatedImageError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DeviceBusyError",
    "DeviceError",
    "DeviceFullError",
    "EmptyImageError",
    "ForeignImageError",
    "ForkedProcessError",
    "FormatError",
    "HeaderMismatchError",
    "ImageReplacedError",
    "KeyslotInUseError",
    "KeyslotsFullError",
    "LuksExistsError",
    "LuksHeaderError",
    "NoKeyslotMatchError",
    "NoReencryptionError",
    "PolicyError",
    "ReadOnlyError",
    "SecretFormatError",
    "SecretObjectError",
    "SecretRequiredError",
    "StorageError",
    "TruncatedImageError",
    "UnfinishedReencryptionError",
    "UnlockError",
    "UnsupportedError",
]


class LuksHeaderError(FormatError):
    """A LUKS header is damaged, contradicts itself or breaks the specification.

    `rule` names the rule in ``spec/luks.md``.
    """

    exit_code = 35


class LuksExistsError(FormatError):
    """A LUKS header exists already where one is to be made."""

    exit_code = 36


class UnlockError(StorageError):
    """The volume cannot be unlocked; the subclasses say why."""

    exit_code = 50


class NoKeyslotMatchError(UnlockError):
    """No keyslot opens with this secret.

    A damaged keyslot area cannot be distinguished from a wrong passphrase: both
    give a key that the digest does not confirm.

    Attributes:
        tried: Keyslot number, and the reason why it did not open.
    """

    exit_code = 51

    def __init__(self, message: str, *, tried: Mapping[int, str], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.tried: dict[int, str] = dict(tried)


class SecretRequiredError(UnlockError):
    """A secret is needed, but none was given, or it cannot be used."""

    exit_code = 52


class SecretObjectError(UnlockError):
    """The definition of a secret contradicts itself, or names an undefined one."""

    exit_code = 55


class SecretFormatError(UnlockError):
    """A secret is not encoded or encrypted as its definition says."""

    exit_code = 56


class PolicyError(StorageError):
    """The operation is possible, but would weaken the protection that the user relies on.

    Raised before any secret is used. If it can be permitted, the message names the
    argument that does.
    """

    exit_code = 53


class KeyslotsFullError(StorageError):
    """All keyslots, or the space for their key material, are in use."""

    exit_code = 54


class NoReencryptionError(StorageError):
    """No re-encryption is in progress, so there is nothing to be resumed or taken back."""

    exit_code = 44


class UnfinishedReencryptionError(StorageError):
    """A re-encryption is in progress, and has to be resumed to its end first."""

    exit_code = 45


class HeaderMismatchError(StorageError):
    """A header does not belong to the volume it is meant for, or nothing proves that it does."""

    exit_code = 58


class KeyslotInUseError(StorageError):
    """A keyslot is active with another secret and must not be overwritten in place."""

    exit_code = 59
