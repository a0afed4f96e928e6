"""A store as the NVRAM of a TPM: its states are sections, in swtpm's form (V4 to V15)."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Final, Protocol

from blobstore.errors import (
    BlobNotFoundError,
    CorruptStoreError,
    StoreError,
    UnwrittenBlobError,
)
from blobstore.foreign.states import TPM_MAX_SIZES, tpm_section_names, tpm_type
from formats.errors import ArgumentError, DeviceBusyError, StorageError
from formats.logs import LateLogger
from formats.state.swtpm import (
    OVERHEAD,
    PlainState,
    Slot,
    TpmVersion,
    decode_state,
    encode_state,
    tpm_version,
    validate_slot,
)
from luks import PolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from blobstore.store.description import SectionInfo
    from blobstore.store.store import Store

_log = LateLogger(__name__)

#: How often and how long apart the lock of an image that changes hands is tried.
LOCK_RETRIES: Final = 300
_LOCK_PAUSE: Final = 0.01


class StateChanges(Protocol):
    """Changes that are made together: what is used of `blobstore.Transaction`."""

    def put(self, name: str, data: bytes) -> None: ...
    def register(
        self,
        name: str,
        max_size: int,
        kind: str = "blob",
        *,
        copies: int | None = None,
        type: str = "",  # noqa: A002  the field's name in the format
    ) -> None: ...
    def delete(self, name: str) -> None: ...


class StateStore(Protocol):
    """What a TPM needs of a store, which may be another process's (V70)."""

    def __contains__(self, name: object) -> bool: ...
    def get(self, name: str) -> bytes: ...
    def section(self, name: str) -> SectionInfo: ...
    def put(self, name: str, data: bytes) -> object: ...
    def transaction(self) -> AbstractContextManager[StateChanges]: ...
    def delete(self, name: str) -> None: ...


class StoreNvram:
    """The states of one TPM in an open store.

    It implements `libtpms.Nvram`, and owns what follows from a store that can
    change hands (V40 to V44). Not safe between threads.
    """

    def __init__(
        self,
        store: StateStore,
        name: str | None = None,
        *,
        released: bool = False,
        held_changed: Callable[[bool], None] | None = None,
    ) -> None:
        """Use the sections of that first name; the store stays the caller's to close.

        Args:
            store: Open for writing; or that of an owner. Only a `blobstore.Store` can
                be given up and taken.
            name: The first part of the sections' names; ``tpm`` by default.
            released: Whether the store was opened so, or its lock given up.
            held_changed: Called with False before the image is given up, and with True
                once it was taken, or after all could not be given up.

        Raises:
            ValueError: The names would break a rule.
        """
        self._store = store
        self._names = tpm_section_names(name)
        self._version: TpmVersion | None = None
        self._released = released
        self._held_changed = held_changed or (lambda _: None)
        #: Whether libtpms may make a new TPM where none was ever stored (V10, V44).
        self.may_be_new = True
        self._registered = False
        # What is known of the volatile state; asking on each put would take as long as one
        # where the store is another process's. Only this TPM changes it (V80).
        self._has_volatile: bool | None = None
        self._left: bytes | None = None

    @property
    def sections(self) -> frozenset[str]:
        """The names of the sections that this TPM has, or may come to have (V80)."""
        return frozenset(self._names.values())

    # ------------------------------------------------------------ states

    def stored_version(self) -> TpmVersion | None:
        """Return which TPM the image has; None if it never had one (V6).

        Raises:
            CorruptStoreError: There are states that belong to a permanent one
                that is not there.
            FormatError, CorruptBlobError, DeviceError: As `load`.
        """
        permanent = self._decoded(Slot.PERMANENT)
        if permanent is not None:
            return tpm_version(permanent)
        for slot in (Slot.VOLATILE, Slot.SAVED):
            if self._blob(slot) is not None:
                raise CorruptStoreError(
                    f"section {self._names[slot]!r} holds a state of a TPM, and the permanent "
                    f"state it belongs to is missing [V6]",
                    name=self._names[slot],
                    hint="restore it from a backup: a new TPM would have none of its keys",
                )
        return None

    def registered_version(self) -> TpmVersion | None:
        """Return which TPM the section of the permanent state was made for, if one says so.

        Raises:
            DamagedHeadError: A head is damaged, so that is not known.
        """
        name = self._names[Slot.PERMANENT]
        if name not in self._store:
            return None
        kind = self._store.section(name).type
        versions = {tpm_type(version, Slot.PERMANENT): version for version in TpmVersion}
        return versions.get(kind)

    def check(self, version: TpmVersion) -> None:
        """Read and check every state; nothing is written (V6, V7).

        Raises:
            PolicyError: The image has a TPM of the other version.
            CorruptStoreError, FormatError, CorruptBlobError, DeviceError: As
                `stored_version` and `load`.
        """
        stored = self.stored_version()
        if stored not in (None, version):
            raise PolicyError(
                f"the image has a TPM {stored}, and not a TPM {version} [V7]",
                hint="leave the version to the image, or give this TPM another --name",
            )
        self._version = version
        for slot in Slot:
            self.load(slot)

    def register(self, worst_cases: Mapping[Slot, int]) -> None:
        """Make sure that there are sections for the states of the checked version (V5).

        Args:
            worst_cases: What libtpms says of the size of each state, in bytes.

        Raises:
            SectionMismatchError: One has a single copy, so that a put would not be
                atomic, or is a window.
            NoSpaceError, DeviceError and others: As `Store.register`.
        """
        self._require_held()
        self._register(worst_cases)
        self._registered = True

    def load(self, slot: Slot) -> bytes | None:
        """Return what libtpms stored, or None if it never did (V10).

        Raises:
            FormatError: The section holds something else.
            PolicyError: The section holds state that swtpm encrypted.
            CorruptBlobError, DeviceError, PoisonedStoreError: As `Store.get`.
        """
        state = self._decoded(slot)
        if state is None:
            if slot is Slot.PERMANENT and self._registered and not self.may_be_new:
                raise UnwrittenBlobError("the TPM is to come, and its state did not [V44]")
            return None
        if self._version is not None:
            validate_slot(state, slot, self._version)
        return state.data

    def store(self, slot: Slot, data: bytes) -> None:
        """Keep a state, durably; a permanent one ends the volatile one before it (V13).

        Raises:
            BlobNotFoundError, BlobTooLargeError, ReadOnlyError, DeviceError,
            PoisonedStoreError: As `Store.put`.
        """
        self._require_held()
        blob = encode_state(PlainState(data))
        name = self._names[slot]
        known, self._has_volatile = self._has_volatile, None  # until this is done
        if slot is Slot.PERMANENT:
            if self._written(Slot.VOLATILE) if known is None else known:
                with self._store.transaction() as changes:
                    changes.put(name, blob)
                    changes.delete(self._names[Slot.VOLATILE])
            else:
                self._store.put(name, blob)
            self._has_volatile = False
            return
        self._register({slot: len(data)})  # it is deleted with each state that ends
        self._store.put(name, blob)
        self._has_volatile = True if slot is Slot.VOLATILE else known

    def delete(self, slot: Slot) -> None:
        """Forget a state, if there is one; never the permanent one (V14).

        Raises:
            PolicyError: It is the permanent one.
            ReadOnlyError, DeviceError, PoisonedStoreError: As `Store.delete`.
        """
        if slot is Slot.PERMANENT:
            raise PolicyError("a TPM does not delete its permanent state [V14]")
        if self._written(slot):
            self._require_held()
            self._has_volatile = None
            self._store.delete(self._names[slot])

    def sizes(self) -> dict[Slot, int]:
        """Return the bytes of each state that was written, as swtpm's files have them."""
        found = {slot: self._blob(slot) for slot in Slot}
        return {slot: len(blob) for slot, blob in found.items() if blob is not None}

    # ---------------------------------------------------------- the lock

    @property
    def held(self) -> bool:
        """Whether the image is ours to write."""
        return not self._released

    def take(self, retries: int = LOCK_RETRIES) -> None:
        """Take the image, which another process may still have (V42).

        Args:
            retries: How often it is tried again, 10 ms apart.

        Raises:
            DeviceBusyError: It still has it.
            CorruptStoreError: The image was given up and is no longer what it was
                then: the state of this TPM is an old one.
            FormatError, DeviceError: As `Store.take_over`.
        """
        while not self.held:
            try:
                self._whole_store().take_over()
            except DeviceBusyError:
                if retries <= 0:
                    raise
                retries -= 1
                time.sleep(_LOCK_PAUSE)
                continue
            if self._left not in (None, self._fingerprint()):
                self._whole_store().release()
                raise CorruptStoreError(
                    "the TPM's permanent state was changed by another process after the image was "
                    "given up [V43]",
                    hint="the TPM runs there now; start this one again to go on from its state",
                )
            self._released = False
            self._has_volatile = None
            self._held_changed(True)

    def give_up(self) -> None:
        """Let another process take the image (V41).

        Raises:
            DeviceError, PoisonedStoreError: As `Store.release`; it is kept then.
        """
        store = self._whole_store()
        if self.held:
            self._left = self._fingerprint()
            self._held_changed(False)
            # Before the lock is gone: what is interrupted after that must not take the state
            # that another process leaves for the one that was left here.
            self._released = True
        try:
            store.release()
        except (StorageError, ValueError):  # windows are open, for instance
            self._released = False
            self._held_changed(True)
            raise
        _log.info("the image was released")

    # ---------------------------------------------------------- internal

    def _whole_store(self) -> Store:
        from blobstore.store.store import Store  # noqa: PLC0415  a worker has none

        if not isinstance(self._store, Store):
            raise ArgumentError("only the process that has an image can give it up or take it")
        return self._store

    def _fingerprint(self) -> bytes:
        return hashlib.sha256(self._blob(Slot.PERMANENT) or b"").digest()

    def _require_held(self) -> None:
        if not self.held:
            raise StoreError("the image was given up to another process [V41]")

    def _register(self, worst_cases: Mapping[Slot, int]) -> None:
        assert self._version is not None, "check comes first"
        with self._store.transaction() as changes:
            for slot, size in worst_cases.items():
                largest = max(size + OVERHEAD, TPM_MAX_SIZES[self._version, slot])
                kind = tpm_type(self._version, slot)
                changes.register(self._names[slot], largest, copies=2, type=kind)

    def _written(self, slot: Slot) -> bool:
        try:
            return self._store.section(self._names[slot]).size is not None
        except BlobNotFoundError:
            return False

    def _blob(self, slot: Slot) -> bytes | None:
        """Return a section's blob; None only if it was never written."""
        try:
            return self._store.get(self._names[slot])
        except UnwrittenBlobError:
            return None
        except BlobNotFoundError:
            if slot is Slot.PERMANENT and self._registered:
                raise  # it was deleted while the TPM ran, which does not permit a new TPM
            return None

    def _decoded(self, slot: Slot) -> PlainState | None:
        blob = self._blob(slot)
        if blob is None:
            return None
        state = decode_state(blob, f"section {self._names[slot]!r}")
        if not isinstance(state, PlainState):
            raise PolicyError(
                f"section {self._names[slot]!r} holds state that swtpm encrypted [V4]",
                hint="import it with its key: blobstore import --swtpm-key",
            )
        return state
