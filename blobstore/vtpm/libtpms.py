"""libtpms through ctypes: one TPM, whose state is kept by its callbacks.

The library is found when a TPM is made and nothing else needs it. It has one TPM in a
process, whatever is done (V2).

Source: libtpms's own manual pages, ``TPMLIB_*(3)``, and its ``tpm_library.h``.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from blobstore.vtpm import abi
from formats.errors import StorageError, UnsupportedError
from formats.logs import LateLogger
from formats.state.swtpm import Slot, TpmVersion

if TYPE_CHECKING:
    from collections.abc import Callable

_log = LateLogger(__name__)

#: libtpms's names of the states, which its callbacks use.
STATE_NAMES: Final = {
    "permall": Slot.PERMANENT,
    "volatilestate": Slot.VOLATILE,
    "savestate": Slot.SAVED,
}


class Result(IntEnum):
    """Results of libtpms and of the control channel that something here gives or asks for."""

    SUCCESS = 0x00
    BAD_PARAMETER = 0x03
    FAIL = 0x09
    BAD_ORDINAL = 0x0A
    KEY_NOT_FOUND = 0x0D
    SIZE = 0x17
    IO_ERROR = 0x1F
    DECRYPT_ERROR = 0x21
    BAD_LOCALITY = 0x3D
    #: There is no such state: the only one on which libtpms makes a new TPM (V10).
    RETRY = 0x800


class Property(IntEnum):
    """Of `TPMLIB_GetTPMProperty`."""

    BUFFER_MAX = 2
    MAX_NV_SPACE = 13
    MAX_SAVED_STATE_SPACE = 14
    MAX_VOLATILE_STATE_SPACE = 15


class Nvram(Protocol):
    """Where a TPM keeps its state. An exception of any kind makes the TPM fail (V11)."""

    def load(self, slot: Slot) -> bytes | None:
        """Return a state, or None if it was never written: then a TPM may be made."""

    def store(self, slot: Slot, data: bytes) -> None:
        """Keep a state; it is durable when this returns."""

    def delete(self, slot: Slot) -> None:
        """Forget a state; no error if there is none."""


_STATE_TYPES: Final = {Slot.PERMANENT: 1, Slot.VOLATILE: 2, Slot.SAVED: 4}

_taken = False


class Libtpms:
    """The TPM of this process. Not safe between threads, but for `cancel`.

    Methods return libtpms's results as they are; 0 is success.
    """

    def __init__(self, version: TpmVersion, nvram: Nvram, locality: Callable[[], int]) -> None:
        """Choose the kind of TPM; nothing is loaded or stored yet.

        Args:
            version: Which TPM it is.
            nvram: Its storage. `failed` is the last error that it had in `start` or `process`.
            locality: Asked for the locality of a command.

        Raises:
            UnsupportedError: libtpms is not installed, or too old, or was built
                without this version.
            ValueError: This process has a TPM already.
        """
        global _taken  # noqa: PLW0603  it is libtpms that is global
        self._library = abi.loaded()
        if _taken:
            raise ValueError("libtpms has one TPM in a process, and this process has it [V2]")
        if self._library.TPMLIB_ChooseTPMVersion(abi.VERSIONS[version]):
            raise UnsupportedError(
                f"this libtpms has no TPM {version}", feature=f"a TPM {version} in libtpms"
            )
        self.failed: StorageError | None = None
        self._raised: BaseException | None = None
        self._nvram = nvram
        # libtpms keeps the functions, not this object: it must live as long as the process.
        self._callbacks = abi.Callbacks(
            ctypes.sizeof(abi.Callbacks),
            abi.Plain(lambda: 0),
            abi.Load(self._load),
            abi.Store(self._store),
            abi.Delete(self._delete),
            abi.Plain(lambda: 0),
            abi.Locality(_answer(locality)),
            abi.Presence(_answer(lambda: 1)),
        )
        _KEPT.append(self._callbacks)
        if self._library.TPMLIB_RegisterCallbacks(ctypes.byref(self._callbacks)):
            raise UnsupportedError(
                "libtpms refuses our storage", feature="this version of libtpms", hint=abi.REMEDY
            )
        _taken = True
        self._buffer = ctypes.c_void_p()
        self._buffer_size = ctypes.c_uint32()

    # ------------------------------------------------------------ running

    def set_profile(self, profile: str) -> int:
        """Choose the profile, as JSON, of the TPM 2.0 that the next `start` makes.

        Raises:
            UnsupportedError: libtpms is older than its profiles (V101).
        """
        return int(abi.with_profiles(self._library).TPMLIB_SetProfile(profile.encode()))

    def start(self) -> int:
        """Load the state and start, as at power on; without any state make a new TPM."""
        self.failed = None
        return self._call(self._library.TPMLIB_MainInit)

    def stop(self) -> None:
        """Stop, as at power off. States that were set and not started are forgotten."""
        self._library.TPMLIB_Terminate()

    def process(self, command: bytes) -> tuple[int, bytes]:
        """Execute a command; return libtpms's result and the response."""
        self.failed = None
        size = ctypes.c_uint32()
        result = self._call(
            self._library.TPMLIB_Process,
            ctypes.byref(self._buffer),
            ctypes.byref(size),
            ctypes.byref(self._buffer_size),
            command,
            len(command),
        )
        # The buffer is used again for the next one: copy it.
        response = ctypes.string_at(self._buffer, size.value) if self._buffer.value else b""
        return result, response

    def cancel(self) -> int:
        """Cancel the command that another thread is executing, if it can be."""
        return int(self._library.TPMLIB_CancelCommand())

    # ------------------------------------------------------------- state

    def volatile_state(self) -> tuple[int, bytes]:
        """Return the volatile state of a running TPM."""
        return self._taken_buffer(self._library.TPMLIB_VolatileAll_Store)

    def set_state(self, slot: Slot, data: bytes) -> int:
        """Give a stopped TPM a state that it starts from instead of the stored one."""
        return self._call(
            self._library.TPMLIB_SetState, _STATE_TYPES[slot], data or None, len(data)
        )

    # -------------------------------------------------------- information

    def property(self, which: Property) -> int:
        """Return a property, or 0 where this TPM does not know it."""
        value = ctypes.c_int()
        if self._library.TPMLIB_GetTPMProperty(int(which), ctypes.byref(value)):
            return 0
        return value.value

    def information(self, flags: int) -> bytes | None:
        """Return JSON about the implementation, without a final zero; None if there is none."""
        text = self._library.TPMLIB_GetInfo(flags & 0xFFFFFFFF)
        if not text:
            return None
        try:
            return ctypes.string_at(text)
        finally:
            abi.libc().free(text)

    def set_buffer_size(self, wanted: int) -> tuple[int, int, int]:
        """Set the largest command and response in bytes; 0 asks. Return it, least and most."""
        least, most = ctypes.c_uint32(), ctypes.c_uint32()
        size = self._library.TPMLIB_SetBufferSize(wanted, ctypes.byref(least), ctypes.byref(most))
        return int(size), least.value, most.value

    # --------------------------------------------------- the TPM interface

    def hash_start(self) -> int:
        """Begin the measurement of a dynamic launch."""
        return self._call(self._library.TPM_IO_Hash_Start)

    def hash_data(self, data: bytes) -> int:
        """Measure ``data``."""
        return self._call(self._library.TPM_IO_Hash_Data, data, len(data))

    def hash_end(self) -> int:
        """End the measurement."""
        return self._call(self._library.TPM_IO_Hash_End)

    def established(self) -> tuple[int, bool]:
        """Return whether there was a dynamic launch."""
        bit = ctypes.c_ubyte()
        result = self._call(self._library.TPM_IO_TpmEstablished_Get, ctypes.byref(bit))
        return result, bool(bit.value)

    def reset_established(self) -> int:
        """Forget that there was one; the locality decides whether it may be."""
        return self._call(self._library.TPM_IO_TpmEstablished_Reset)

    # ---------------------------------------------------------- callbacks

    def _guarded(self, what: str, name: bytes, action: Callable[[Slot], int]) -> int:
        """Do what libtpms asks for; of an exception it learns as a failure (V11).

        ctypes would print an exception of a callback and answer 0, for success. What
        is not an error of storage is raised again once libtpms has returned.
        """
        try:
            return action(STATE_NAMES[name.decode()])
        except StorageError as error:
            self.failed = error
            _log.error("the TPM's %s cannot be %s: %s", name.decode(), what, error)
        except BaseException as error:  # noqa: BLE001  raised again by `_call`
            self._raised = error
        return Result.FAIL

    def _call(self, function: Any, *arguments: Any) -> int:
        """Call libtpms where it may call back; raise what was raised there."""
        result = int(function(*arguments))
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised
        return result

    def _load(self, data: Any, length: Any, number: int, name: bytes) -> int:
        del number

        def load(slot: Slot) -> int:
            state = self._nvram.load(slot)
            if state is None:
                return Result.RETRY
            # libtpms frees it; its own TPM_Malloc gives no more than 128 KiB (V12).
            memory = abi.libc().malloc(len(state))
            if not memory:
                raise MemoryError(f"no memory for {len(state)} bytes of a TPM's state")
            ctypes.memmove(memory, state, len(state))
            data[0], length[0] = memory, len(state)
            return Result.SUCCESS

        data[0], length[0] = None, 0
        return self._guarded("loaded", name, load)

    def _store(self, data: int, length: int, number: int, name: bytes) -> int:
        del number

        def store(slot: Slot) -> int:
            self._nvram.store(slot, ctypes.string_at(data, length))
            return Result.SUCCESS

        return self._guarded("stored", name, store)

    def _delete(self, number: int, name: bytes, must_exist: int) -> int:
        del number, must_exist

        def delete(slot: Slot) -> int:
            self._nvram.delete(slot)
            return Result.SUCCESS

        return self._guarded("deleted", name, delete)

    def _taken_buffer(self, function: Any) -> tuple[int, bytes]:
        buffer, size = ctypes.c_void_p(), ctypes.c_uint32()
        result = self._call(function, ctypes.byref(buffer), ctypes.byref(size))
        if not buffer.value:
            return result, b""
        try:
            return result, b"" if result else ctypes.string_at(buffer, size.value)
        finally:
            abi.libc().free(buffer)


def _answer(ask: Callable[[], int]) -> Callable[[Any, int], int]:
    """Return a callback that hands over a small number."""

    def callback(place: Any, number: int) -> int:
        del number
        place[0] = ask()
        return 0

    return callback


#: Callbacks that libtpms still knows.
_KEPT: Final[list[abi.Callbacks]] = []
