"""libtpms through ctypes: one TPM, whose state is kept by whoever gives the callbacks.

The library is found when a TPM is made and nothing else needs it. It has one TPM in a
process, whatever is done (V2). This is the only module that knows its interface.

Source: libtpms's own manual pages, ``TPMLIB_*(3)``, and its ``tpm_library.h``.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

from formats.errors import StorageError, UnsupportedError
from formats.logs import LateLogger
from formats.swtpm import Slot, TpmVersion

if TYPE_CHECKING:
    from collections.abc import Callable

_log = LateLogger(__name__)

#: What a user can do where it is missing.
REMEDY: Final = "install libtpms (Debian and Ubuntu: libtpms0)"

# The first name that loads is taken.
_NAMES: Final = ("libtpms.so.0", "libtpms.0.dylib", "libtpms.so", "libtpms.dylib")

#: The oldest release with `TPMLIB_SetState` and TPM 2.0.
_LEAST_VERSION: Final = (0, 6, 0)

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


class Info(IntFlag):
    """Of `TPMLIB_GetInfo`."""

    SPECIFICATION = 1
    ATTRIBUTES = 2
    FEATURES = 4


class Nvram(Protocol):
    """Where a TPM keeps its state. An exception of any kind makes the TPM fail (V11)."""

    def load(self, slot: Slot) -> bytes | None:
        """Return a state, or None if it was never written: then a TPM may be made."""

    def store(self, slot: Slot, data: bytes) -> None:
        """Keep a state; it is durable when this returns."""

    def delete(self, slot: Slot) -> None:
        """Forget a state; no error if there is none."""


class _Callbacks(ctypes.Structure):
    """``struct libtpms_callbacks``."""


_Bytes = ctypes.POINTER(ctypes.c_ubyte)
_U32 = ctypes.POINTER(ctypes.c_uint32)

_Plain = ctypes.CFUNCTYPE(ctypes.c_uint32)
_Load = ctypes.CFUNCTYPE(
    ctypes.c_uint32, ctypes.POINTER(ctypes.c_void_p), _U32, ctypes.c_uint32, ctypes.c_char_p
)
_Store = ctypes.CFUNCTYPE(
    ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p
)
_Delete = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_ubyte)
_Locality = ctypes.CFUNCTYPE(ctypes.c_uint32, _U32, ctypes.c_uint32)
_Presence = ctypes.CFUNCTYPE(ctypes.c_uint32, _Bytes, ctypes.c_uint32)

_Callbacks._fields_ = [
    ("size", ctypes.c_int),
    ("nvram_init", _Plain),
    ("load", _Load),
    ("store", _Store),
    ("delete", _Delete),
    ("io_init", _Plain),
    ("locality", _Locality),
    ("presence", _Presence),
]

_VERSIONS: Final = {TpmVersion.TPM_12: 0, TpmVersion.TPM_2: 1}
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
        self._library = _loaded()
        if _taken:
            raise ValueError("libtpms has one TPM in a process, and this process has it [V2]")
        if self._library.TPMLIB_ChooseTPMVersion(_VERSIONS[version]):
            raise UnsupportedError(
                f"this libtpms has no TPM {version}", feature=f"a TPM {version} in libtpms"
            )
        self.failed: StorageError | None = None
        self._raised: BaseException | None = None
        self._nvram = nvram
        # libtpms keeps the functions, not this object: it must live as long as the process.
        self._callbacks = _Callbacks(
            ctypes.sizeof(_Callbacks),
            _Plain(lambda: 0),
            _Load(self._load),
            _Store(self._store),
            _Delete(self._delete),
            _Plain(lambda: 0),
            _Locality(_answer(locality)),
            _Presence(_answer(lambda: 1)),
        )
        _KEPT.append(self._callbacks)
        if self._library.TPMLIB_RegisterCallbacks(ctypes.byref(self._callbacks)):
            raise UnsupportedError(
                "libtpms refuses our storage", feature="this version of libtpms", hint=REMEDY
            )
        _taken = True
        self._buffer = ctypes.c_void_p()
        self._buffer_size = ctypes.c_uint32()

    # ------------------------------------------------------------ running

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
            _libc().free(text)

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
        is no error of storage is raised again once libtpms has returned.
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
            memory = _libc().malloc(len(state))
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
            _libc().free(buffer)


def _answer(ask: Callable[[], int]) -> Callable[[Any, int], int]:
    """Return a callback that hands over a small number."""

    def callback(place: Any, number: int) -> int:
        del number
        place[0] = ask()
        return 0

    return callback


#: Callbacks that libtpms still knows.
_KEPT: Final[list[_Callbacks]] = []


def library_version() -> tuple[int, int, int]:
    """Return the version of libtpms.

    Raises:
        UnsupportedError: It is not installed, or too old.
    """
    return _version_of(_loaded())


def supported_versions() -> tuple[TpmVersion, ...]:
    """Return which TPMs this libtpms has. Only while this process has no TPM.

    Raises:
        UnsupportedError: As `library_version`.
    """
    library = _loaded()
    return tuple(v for v, n in _VERSIONS.items() if not library.TPMLIB_ChooseTPMVersion(n))


def describe(version: TpmVersion, flags: Info) -> bytes:
    """Return what libtpms says of a kind of TPM, as JSON. Only while this process has no TPM."""
    library = _loaded()
    library.TPMLIB_ChooseTPMVersion(_VERSIONS[version])
    text = library.TPMLIB_GetInfo(int(flags))
    try:
        return ctypes.string_at(text) if text else b"{}"
    finally:
        _libc().free(text)


def log_to(descriptor: int, level: int, prefix: str = "") -> None:
    """Let libtpms write its own messages; 0 is none of them."""
    library = _loaded()
    library.TPMLIB_SetDebugFD(descriptor)
    library.TPMLIB_SetDebugLevel(level)
    if prefix:
        library.TPMLIB_SetDebugPrefix(prefix.encode())


def _version_of(library: ctypes.CDLL) -> tuple[int, int, int]:
    version = int(library.TPMLIB_GetVersion())
    return version >> 16, version >> 8 & 0xFF, version & 0xFF


def _loaded() -> ctypes.CDLL:
    library = _find()
    if library is None:
        raise UnsupportedError("libtpms is not installed", feature="a TPM", hint=REMEDY)
    if _version_of(library) < _LEAST_VERSION:
        found = ".".join(map(str, _version_of(library)))
        raise UnsupportedError(f"libtpms {found} is too old", feature="a TPM", hint=REMEDY)
    return library


@cache
def _find() -> ctypes.CDLL | None:
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.TPMLIB_GetInfo.restype = ctypes.c_void_p
        for function in ("TPMLIB_Process", "TPMLIB_SetState", "TPM_IO_Hash_Data"):
            getattr(library, function).restype = ctypes.c_uint32
        library.TPMLIB_SetBufferSize.restype = ctypes.c_uint32
        library.TPMLIB_GetVersion.restype = ctypes.c_uint32
        return library
    return None


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.restype, libc.free.argtypes = None, (ctypes.c_void_p,)
    return libc
