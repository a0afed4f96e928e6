"""What every re-encryption can do, and the values that describe one."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Literal, Self

from formats.errors import ArgumentError
from formats.frozen import Frozen, field
from luks.crypto.hashes import canonical, lookup
from luks.header.validate import SECTOR_SIZES
from luks.model import SECTOR_SIZE

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Protocol

    from formats.devices.device import BlockDevice
    from luks.header.detection import Place
    from luks.model import KdfCost
    from luks.secret.secrets import Secret

    class Progress(Protocol):
        """Is called after each step."""

        def __call__(self, status: ReencryptionStatus, /) -> object:
            """Take the status after the step; an error that it raises ends the run."""


Mode = Literal["reencrypt", "encrypt", "decrypt"]
Direction = Literal["forward", "backward"]
Resilience = Literal[
    "checksum", "journal", "none", "datashift", "datashift-journal", "datashift-checksum"
]


#: Seconds between two steps, for threads that wait for the payload. A step takes far longer.
_PAUSE: Final = 0.0005

_CHOICES: Final = ("checksum", "journal", "none")
#: Most threads that encrypt.
MAX_WORKERS: Final = 16


class ReencryptionStatus(Frozen):
    """How far a re-encryption is.

    Attributes:
        mode: ``"reencrypt"``, ``"encrypt"`` or ``"decrypt"``.
        direction: ``"forward"``: from the start of the payload to its end; or ``"backward"``.
        resilience: How the piece that is being moved survives a crash: ``"checksum"``,
            ``"journal"``, ``"none"``, or one of those that begin with ``"datashift"``.
        position: Bytes of the payload that have been moved.
        size: Bytes of the payload.
        old_cipher: dm-crypt's cipher string before, or None for plain bytes.
        new_cipher: The same afterwards.
        old_sector_size: Bytes per sector before.
        new_sector_size: Bytes per sector afterwards.
        needs_recovery: Whether a crash interrupted a step, so that a piece must be restored
            before the payload can be read; resuming does that.
    """

    mode: Mode
    direction: Direction
    resilience: Resilience
    position: int
    size: int
    old_cipher: str | None
    new_cipher: str | None
    old_sector_size: int
    new_sector_size: int
    needs_recovery: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to move; then the header is final."""
        return self.position >= self.size


class ReencryptionOptions(Frozen, kw_only=True):
    """How a payload is re-encrypted, encrypted or decrypted. None keeps what is there.

    Attributes:
        cipher: dm-crypt's cipher string of the new payload; by default the old one, or
            AES-256-XTS for a plain payload.
        key_size: Bytes of the new volume key; by default as `luks.FormatOptions` chooses.
        sector_size: Bytes per sector of the new payload; by default the old one, or 4096 if
            the payload was plain and its size permits it.
        hash_name: Hash of new keyslots and digests, in LUKS spelling; sha256 by default.
        kdf: Cost of the key derivation of new keyslots, or its kind, to be measured.
        iter_time: Milliseconds that a measured one is to take.
        volume_key: The new key, random by default. It stays the caller's.
        resilience: How a piece that is being moved survives a crash. ``"checksum"`` by
            default; ``"journal"`` writes everything twice; ``"none"`` loses the piece in a
            crash. With data shift it is what protects the pieces that the shift does not.
        resilience_hash: Hash of the checksums.
        hotzone_size: Most bytes moved in a step; by default what resilience and memory permit.
        drop_keyslots: Permit that keyslots vanish whose secrets are not given: without
            their passphrases they cannot hold the new key.
        data_shift: Bytes by which the payload moves. For `begin_encryption` without a detached
            header it is the offset that the payload gets; by default the next multiple of
            1 MiB after the header. For `begin_decryption` with a detached header that exists
            already it is the offset that the payload has, or 0 to leave it there.
        grow: Let `begin_encryption` enlarge the image to make that room; it is cut to what it
            needs at the end. Otherwise the last ``2 * data_shift + 4096`` bytes of the image
            must not be in use, and become a part of the payload with random content.
        workers: Threads that encrypt and compute checksums; 1 to 16.
        journal: Where the journal of a LUKS1 volume is; by default a file beside the image.

    Raises:
        ArgumentError: The values are impossible, or do not fit together.
        PolicyError: The cipher must not be used (L62).
        UnsupportedError: The cipher or a hash cannot be used here.
    """

    cipher: str | None = None
    key_size: int | None = None
    sector_size: int | None = None
    hash_name: str = "sha256"
    kdf: KdfCost | str | None = None
    iter_time: int = 2000
    volume_key: bytes | Secret | None = field(default=None, compare=False, repr=False)
    resilience: Resilience = "checksum"
    resilience_hash: str = "sha256"
    hotzone_size: int | None = None
    drop_keyslots: bool = False
    data_shift: int | None = None
    grow: bool = True
    workers: int = 1
    journal: Place | None = None

    def __post_init__(self) -> None:
        self.__dict__["hash_name"] = canonical(self.hash_name)
        lookup(self.hash_name)
        if self.resilience not in _CHOICES:
            raise ArgumentError(f"resilience is one of {', '.join(_CHOICES)}")
        if lookup(self.resilience_hash).is_truncated:
            raise ArgumentError(f"resilience_hash cannot be {self.resilience_hash!r}")
        if self.sector_size not in {None, *SECTOR_SIZES}:
            raise ArgumentError(f"sector_size must be one of {SECTOR_SIZES}")
        if self.hotzone_size is not None and self.hotzone_size < SECTOR_SIZE:
            raise ArgumentError(f"hotzone_size is at least {SECTOR_SIZE} bytes")
        if self.data_shift is not None and (self.data_shift < 0 or self.data_shift % SECTOR_SIZE):
            raise ArgumentError(f"data_shift is a multiple of {SECTOR_SIZE} bytes, or 0")
        if not 1 <= self.workers <= MAX_WORKERS:
            raise ArgumentError(f"workers must be 1 to {MAX_WORKERS}, not {self.workers}")


class Reencryption(ABC):
    """A re-encryption, encryption or decryption in progress; a context manager.

    All its methods may be called from several threads; a read or write of `volume` waits
    for the step that moves the bytes. In a child of the process that opened it everything
    but `close` raises `ForkedProcessError`.
    """

    @property
    @abstractmethod
    def status(self) -> ReencryptionStatus:
        """How far it is, by what is durable."""

    @property
    @abstractmethod
    def volume(self) -> BlockDevice:
        """The plaintext payload, to be read and written between two steps.

        Its size does not change. What is written before a step and not flushed becomes
        durable with the step at the latest.
        """

    @abstractmethod
    def step(self) -> bool:
        """Move the next piece, durably.

        Returns:
            False if nothing was left; then the header is final and the old key is gone.

        Raises:
            DeviceError: A read, write or flush failed. Nothing is lost: call it again, or
                close this and resume.
        """

    @abstractmethod
    def take_back(self) -> None:
        """Make the image what it was before, if nothing has been moved; then only close this.

        Raises:
            UnfinishedReencryptionError: Something has been moved.
            DeviceError: A read, write or flush failed; nothing is lost.
        """

    @abstractmethod
    def close(self) -> None:
        """Wipe the keys and close the image; what is not moved yet is resumed later.

        Twice is fine.
        """

    def run(self, progress: Progress | None = None) -> None:
        """Take steps until nothing is left.

        Args:
            progress: Called with the status before the first step and after each.

        Raises:
            DeviceError: As `step`.
        """
        if progress is not None:
            progress(self.status)
        while self.step():
            if progress is not None:
                progress(self.status)
            # A lock goes to the thread that asks first, which would be this one again.
            time.sleep(_PAUSE)
        if progress is not None:
            progress(self.status)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
