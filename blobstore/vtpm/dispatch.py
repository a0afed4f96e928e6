"""What is done on a request of the control channel (V50 to V56)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blobstore.vtpm import control
from blobstore.vtpm.control import Code, Request
from blobstore.vtpm.libtpms import Result
from formats.errors import DeviceError, FormatError, StorageError
from formats.logs import LateLogger
from formats.state.swtpm import Slot, TpmVersion

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.vtpm.tpm import Tpm

_log = LateLogger(__name__)

_SLOTS: Final = {1: Slot.PERMANENT, 2: Slot.VOLATILE, 3: Slot.SAVED}

#: Requests that only a running TPM answers, others only one that does not run (V54).
_RUNNING: Final = frozenset(
    {
        Code.GET_ESTABLISHED,
        Code.RESET_ESTABLISHED,
        Code.HASH_START,
        Code.HASH_DATA,
        Code.HASH_END,
        Code.CANCEL,
        Code.STORE_VOLATILE,
        Code.GET_STATE_BLOB,
    }
)
_STOPPED: Final = frozenset({Code.SET_STATE_BLOB})


class Dispatcher:
    """Answers requests for one TPM."""

    def __init__(
        self,
        tpm: Tpm,
        *,
        has_data: Callable[[], bool],
        attach: Callable[[int], None],
        end: Callable[[], None],
    ) -> None:
        """Serve a TPM.

        Args:
            tpm: The TPM.
            has_data: Says whether there is a data channel already.
            attach: Called with a descriptor for the data channel, which it copies.
            end: Called to end the process.
        """
        self._tpm, self._has_data, self._attach, self._end = tpm, has_data, attach, end

    def answer(self, message: bytes, descriptor: int | None = None) -> bytes:
        """Do what a message asks for, and return the reply.

        Args:
            message: As it was received.
            descriptor: What came with it; stays the caller's.
        """
        try:
            request = control.decode_request(message)
        except ValueError:
            _log.warning("an unknown request on the control channel: %s", message[:4].hex())
            return control.result(Result.BAD_ORDINAL)
        except FormatError as error:
            _log.warning("%s", error)
            return control.result(Result.BAD_PARAMETER)
        _log.debug("control channel: %s", request.code.name)
        if request.code is Code.SET_DATA_FD:
            return control.result(self._set_data_fd(descriptor))
        running = self._tpm.running
        if request.code in (_STOPPED if running else _RUNNING):
            return control.result(Result.BAD_ORDINAL)
        if request.code is Code.CANCEL:  # must not wait for the command that it cancels
            return control.result(self._tpm.cancel())
        try:
            return self._do(request)
        except StorageError as error:
            _log.error("%s: %s", request.code.name, error)
            if error.hint:
                _log.error("%s", error.hint)
            if request.code is Code.GET_STATE_BLOB:
                return control.state_blob(Result.FAIL, b"", 0)
            return control.result(Result.FAIL)

    def _do(self, request: Request) -> bytes:
        tpm = self._tpm
        match request.code:
            case Code.GET_CAPABILITY:
                return control.capabilities(prefixes=tpm.version is TpmVersion.TPM_2)
            case Code.GET_CONFIG:
                encrypts = tpm.behaviour.migration_key is not None
                return control.config(control.CONFIG_MIGRATION_KEY if encrypts else 0)
            case Code.GET_ESTABLISHED:
                return control.established(*tpm.established())
            case Code.GET_STATE_BLOB:
                return self._get_state(request)
            case Code.SET_BUFFER_SIZE:
                if request.value and tpm.running:
                    return control.result(Result.BAD_ORDINAL)
                return control.buffer_size(*tpm.set_buffer_size(request.value))
            case Code.GET_INFO:
                return self._get_info(request)
            case _:
                return control.result(self._change(request))

    def _change(self, request: Request) -> int:
        """Do what is answered by a result alone."""
        tpm = self._tpm
        match request.code:
            case Code.INIT:
                return tpm.start(delete_volatile=bool(request.value & control.DELETE_VOLATILE))
            case Code.STOP:
                tpm.stop()
            case Code.SHUTDOWN:
                tpm.stop()
                self._end()
            case Code.SET_LOCALITY:
                return tpm.set_locality(request.value)
            case Code.RESET_ESTABLISHED:
                return tpm.reset_established(request.value)
            case Code.HASH_START:
                return tpm.hash_start()
            case Code.HASH_DATA:
                return tpm.hash_data(request.data)
            case Code.HASH_END:
                return tpm.hash_end()
            case Code.STORE_VOLATILE:
                return tpm.store_volatile()
            case Code.SET_STATE_BLOB:
                slot = _SLOTS.get(request.blob_type)
                return Result.BAD_PARAMETER if slot is None else tpm.accept(slot, request.data)
            case Code.LOCK_STORAGE:
                tpm.lock_storage(request.value)
            case _:
                raise AssertionError(request.code)
        return Result.SUCCESS

    def _set_data_fd(self, descriptor: int | None) -> int:
        if self._has_data():
            return Result.IO_ERROR
        if descriptor is None:
            return Result.BAD_PARAMETER
        try:
            self._attach(descriptor)
        except DeviceError as error:
            _log.error("%s", error)
            return Result.BAD_PARAMETER
        return Result.SUCCESS

    def _get_state(self, request: Request) -> bytes:
        slot = _SLOTS.get(request.blob_type)
        if slot is None:
            return control.state_blob(Result.FAIL, b"", 0)
        code, blob = self._tpm.transfer(slot)
        return control.state_blob(code, blob, request.offset)

    def _get_info(self, request: Request) -> bytes:
        text = self._tpm.information(request.value)
        if text is None:
            return control.result(Result.SIZE)
        try:
            return control.information(text, request.offset)
        except FormatError:
            return control.result(Result.BAD_PARAMETER)
