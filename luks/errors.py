"""What can go wrong with a LUKS volume, its header, its keys.

    StorageError                      1
    ├── FormatError                  30
    │   └── LuksHeaderError          35   the header breaks the LUKS specifications
    │       └── LuksExistsError      36   there is a LUKS header where one is to be made
    ├── UnlockError                  50   the volume cannot be unlocked
    │   ├── NoKeyslotMatchError      51   no keyslot opens with this secret
    │   ├── SecretRequiredError      52   there is no usable secret
    │   ├── SecretObjectError        55   the definition of a secret contradicts itself
    │   └── SecretFormatError        56   a secret is not what its definition says
    ├── PolicyError                  53   it could be done, but must not be
    ├── KeyslotsFullError            54   there is no room for another keyslot
    ├── HeaderMismatchError          58   a header belongs to another volume
    └── KeyslotInUseError            59   the keyslot is active with another secret

Damage, a wrong passphrase, a foreign file and something unknown are different
classes: who takes one for another may destroy data. Importing this module costs
no cryptography.
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
    "PolicyError",
    "ReadOnlyError",
    "SecretFormatError",
    "SecretObjectError",
    "SecretRequiredError",
    "StorageError",
    "TruncatedImageError",
    "UnlockError",
    "UnsupportedError",
]


class LuksHeaderError(FormatError):
    """A LUKS header is damaged, contradicts itself or breaks the specification.

    `rule` names the rule in ``spec/luks.md``.
    """

    exit_code = 35


class LuksExistsError(FormatError):
    """There is a LUKS header already where one is to be made."""

    exit_code = 36


class UnlockError(StorageError):
    """The volume cannot be unlocked; the subclasses say why."""

    exit_code = 50


class NoKeyslotMatchError(UnlockError):
    """No keyslot opens with this secret.

    A damaged keyslot area cannot be told from a wrong passphrase: both give a
    key that the digest does not confirm.

    Attributes:
        tried: Keyslot number to the reason why it did not open.
    """

    exit_code = 51

    def __init__(self, message: str, *, tried: Mapping[int, str], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.tried = dict(tried)


class SecretRequiredError(UnlockError):
    """A secret is needed and there is none, or none that can be used."""

    exit_code = 52


class SecretObjectError(UnlockError):
    """The definition of a secret contradicts itself, or names one that is not defined."""

    exit_code = 55


class SecretFormatError(UnlockError):
    """There is a secret, but it is not encoded or encrypted as its definition says."""

    exit_code = 56


class PolicyError(StorageError):
    """It could be done, but not without weakening what the user relies on.

    Raised before any secret is used. The message names what the caller can
    pass to permit it, where it can be permitted at all.
    """

    exit_code = 53


class KeyslotsFullError(StorageError):
    """All keyslots are in use, or the space for their key material is."""

    exit_code = 54


class HeaderMismatchError(StorageError):
    """A header does not belong to the volume that it was to be put on, or nothing shows it."""

    exit_code = 58


class KeyslotInUseError(StorageError):
    """A keyslot is active with another secret, and must not be overwritten in its place."""

    exit_code = 59
