"""Errors of the store; those of devices and formats are in `formats.errors`.

    StoreError                       60
    ├── BlobNotFoundError            61   the directory is sound and lacks the name
    ├── UnwrittenBlobError           62   registered, never written
    ├── BlobTooLargeError            63   larger than the section's worst case
    ├── NoSpaceError                 64   no room in the container
    ├── CorruptBlobError             65   what was durable no longer verifies
    │   ├── DamagedHeadError         66   a head, hence names and root, is unreadable
    │   └── CorruptStoreError        67   parts of the store contradict each other
    ├── PoisonedStoreError           68   a write failed; reopen
    ├── ImageExistsError             69   a store of this project stands where one is to be made
    ├── SectionMismatchError         70   registered as something else
    ├── ManifestError                71   of `blobstore pack`
    ├── OutputExistsError            72   a file stands where one is to be made
    ├── SectionExistsError           73   the name is taken
    ├── NoPreviousBlobError          74   there is nothing to go back to
    ├── PinMismatchError             75   not the state that its user expects
    ├── StateAuthenticationError     76   encrypted device state does not verify
    ├── StoreBusyError               77   it changes too fast to be read without the lock
    ├── GenerationMismatchError      78   the section was changed since it was looked at
    ├── ConfigError                  79   of `blobstore serve`
    ├── UnfinishedCopyError          80   a copy of an image, of which parts are missing
    └── MovedImageError              81   the image was handed over to a copy

An emulator may make new state for a device only on `BlobNotFoundError` (after
which it registers) and `UnwrittenBlobError`. Nothing else means absence.
"""

from __future__ import annotations

from typing import Self

from formats.errors import StorageError


class StoreError(StorageError):
    """Root of the store's errors."""

    exit_code = 60


class BlobNotFoundError(StoreError):
    """No section has this name, and the whole directory is sound."""

    exit_code = 61


class UnwrittenBlobError(StoreError):
    """The section is registered and was never written."""

    exit_code = 62


class BlobTooLargeError(StoreError):
    """The blob is larger than the section's worst-case size."""

    exit_code = 63

    @classmethod
    def of(cls, name: str, size: int, max_size: int) -> Self:
        """Return the error for a blob of ``size`` bytes that a section does not hold."""
        return cls(
            f"section {name!r} holds at most {max_size} bytes, not {size}",
            hint="register it with a larger size",
        )


class NoSpaceError(StoreError):
    """The container has no free extent that is large enough."""

    exit_code = 64


class CorruptBlobError(StoreError):
    """What was durable no longer verifies; older data is not put in its place.

    Attributes:
        name: Name of the section, or None where it is not known.
        generation: Generation of the damaged record, or None.
        offset: Byte offset of the record in the container, or None.
    """

    exit_code = 65

    def __init__(
        self,
        message: str,
        *,
        name: str | None = None,
        generation: int | None = None,
        offset: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.name = name
        self.generation = generation
        self.offset = offset


class DamagedHeadError(CorruptBlobError):
    """The head of an item is unreadable: a name may be in it, and nothing is written."""

    exit_code = 66


class CorruptStoreError(CorruptBlobError):
    """Parts of the store contradict each other, as after a replay of old parts."""

    exit_code = 67


class PoisonedStoreError(StoreError):
    """A write or flush failed; what is durable shows when the store is opened again."""

    exit_code = 68


class ImageExistsError(StoreError):
    """A store of this project stands where one is to be made."""

    exit_code = 69


class SectionMismatchError(StoreError):
    """The section exists as another kind or with another number of copies."""

    exit_code = 70


class OutputExistsError(StoreError):
    """The file that is to be made exists."""

    exit_code = 72


class SectionExistsError(StoreError):
    """A section of that name is there already."""

    exit_code = 73


class NoPreviousBlobError(StoreError):
    """The section has no older blob that verifies."""

    exit_code = 74


class StateAuthenticationError(StoreError):
    """Encrypted or signed device state does not verify: another key or signer, or damage."""

    exit_code = 76


class PinMismatchError(StoreError):
    """The store is sound, but not in the state, or not as new, as its user expects."""

    exit_code = 75


class StoreBusyError(StoreError):
    """The store changed again and again while it was read, or copied, without the lock."""

    exit_code = 77


class GenerationMismatchError(StoreError):
    """The section is not at the generation that a change was to be made from."""

    exit_code = 78


class ManifestError(StoreError):
    """The manifest of `blobstore pack` cannot be used."""

    exit_code = 71


class ConfigError(StoreError):
    """The configuration of `blobstore serve` cannot be used."""

    exit_code = 79


class UnfinishedCopyError(StoreError):
    """The image is a copy that is not complete."""

    exit_code = 80


class MovedImageError(StoreError):
    """The image was handed over to a copy of it, which is to be used instead."""

    exit_code = 81
