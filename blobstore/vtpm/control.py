"""The control channel: requests and replies as bytes (V50 to V53).

Bytes to values and back; `blobstore.vtpm.dispatch` does what they ask for.

Source: swtpm's ``tpm_ioctl.h`` (BSD licence), and what swtpm 0.7.1 answers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from formats.errors import FormatError

#: Bytes of a state that is accepted, and of data to hash, in one request (V51).
MAX_PAYLOAD: Final = 512 << 10

_U32: Final = struct.Struct(">I")
_GET_STATE: Final = struct.Struct(">III")  # flags, type, offset
_SET_STATE: Final = struct.Struct(">III")  # flags, type, length
_GET_INFO: Final = struct.Struct(">QII")  # flags, offset, padding

#: Bytes of information in one reply.
_INFO_SIZE: Final = 3 * 1024

#: Flag of `Code.INIT`: forget the volatile state.
DELETE_VOLATILE: Final = 1
#: Flag of `Code.GET_CONFIG`: states are encrypted on their way.
CONFIG_MIGRATION_KEY: Final = 2


class Code(IntEnum):
    """The requests."""

    GET_CAPABILITY = 0x01
    INIT = 0x02
    SHUTDOWN = 0x03
    GET_ESTABLISHED = 0x04
    SET_LOCALITY = 0x05
    HASH_START = 0x06
    HASH_DATA = 0x07
    HASH_END = 0x08
    CANCEL = 0x09
    STORE_VOLATILE = 0x0A
    RESET_ESTABLISHED = 0x0B
    GET_STATE_BLOB = 0x0C
    SET_STATE_BLOB = 0x0D
    STOP = 0x0E
    GET_CONFIG = 0x0F
    SET_DATA_FD = 0x10
    SET_BUFFER_SIZE = 0x11
    GET_INFO = 0x12
    LOCK_STORAGE = 0x13


#: What `Code.GET_CAPABILITY` answers: all of the above (bits 0 to 14 and 16), and commands
#: with a prefix (bit 15), which are a TPM 2.0's only.
_CAPABILITIES: Final = 0x17FFF
_CAPABILITY_PREFIX: Final = 0x8000

#: Bytes that follow the code, where they are always as many.
_FIXED: Final = {
    Code.INIT: 4,
    Code.SET_LOCALITY: 1,
    Code.RESET_ESTABLISHED: 1,
    Code.GET_STATE_BLOB: _GET_STATE.size,
    Code.SET_BUFFER_SIZE: 4,
    Code.GET_INFO: _GET_INFO.size,
    Code.LOCK_STORAGE: 4,
}
#: Requests that more bytes may follow: clients send structures, whole or in part.
_MAY_BE_LONGER: Final = frozenset(_FIXED) - {Code.INIT} | {Code.GET_CAPABILITY, Code.SET_DATA_FD}


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        code: What is asked for.
        value: Flags, locality, size or number of retries, whichever it has.
        blob_type: Which state.
        offset: Bytes to skip of what is asked for.
        data: A state, or what to hash.
    """

    code: Code
    value: int = 0
    blob_type: int = 0
    offset: int = 0
    data: bytes = b""


def needed(received: bytes | bytearray) -> int:
    """Return of how many bytes a request will be, as far as can be said by now (V50).

    Raises:
        FormatError: Of too many (V51).
    """
    size = _U32.size
    if len(received) < size:
        return size
    code = _U32.unpack_from(received)[0]
    if code in _FIXED:
        return size + _FIXED[Code(code)]
    if code == Code.HASH_DATA:
        return _with_payload(received, size)
    if code == Code.SET_STATE_BLOB:
        return _with_payload(received, size + _SET_STATE.size - _U32.size)
    return size


def decode_request(message: bytes) -> Request:
    """Return what a whole message asks for (V50).

    Raises:
        ValueError: There is no such request.
        FormatError: It has not the bytes that it should have.
    """
    if len(message) < _U32.size:
        raise FormatError("a request without a code", rule="V50")
    code = Code(_U32.unpack_from(message)[0])
    body = message[_U32.size :]
    size = needed(message) - _U32.size
    if len(body) < size or (len(body) > size and code not in _MAY_BE_LONGER):
        raise FormatError(f"{code.name} with {len(body)} bytes instead of {size}", rule="V50")
    if code in (Code.SET_LOCALITY, Code.RESET_ESTABLISHED):
        return Request(code, value=body[0])
    if code in (Code.INIT, Code.SET_BUFFER_SIZE, Code.LOCK_STORAGE):
        return Request(code, value=_U32.unpack_from(body)[0])
    if code is Code.HASH_DATA:
        return Request(code, data=body[_U32.size :])
    if code is Code.GET_STATE_BLOB:
        flags, blob_type, offset = _GET_STATE.unpack_from(body)
        return Request(code, value=flags, blob_type=blob_type, offset=offset)
    if code is Code.SET_STATE_BLOB:
        flags, blob_type, _ = _SET_STATE.unpack_from(body)
        return Request(code, value=flags, blob_type=blob_type, data=body[_SET_STATE.size :])
    if code is Code.GET_INFO:
        flags, offset, _ = _GET_INFO.unpack_from(body)
        return Request(code, value=flags, offset=offset)
    return Request(code)


def result(code: int) -> bytes:
    """Return a reply that is a result and nothing else."""
    return _U32.pack(code)


def capabilities(*, prefixes: bool) -> bytes:
    """Return the reply of `Code.GET_CAPABILITY`, 64 bits that have no result in front."""
    return struct.pack(">Q", _CAPABILITIES | (_CAPABILITY_PREFIX if prefixes else 0))


def established(code: int, bit: bool) -> bytes:
    """Return the reply of `Code.GET_ESTABLISHED`."""
    return struct.pack(">IB3x", code, bit)


def config(flags: int) -> bytes:
    """Return the reply of `Code.GET_CONFIG`."""
    return struct.pack(">II", 0, flags)


def buffer_size(size: int, least: int, most: int) -> bytes:
    """Return the reply of `Code.SET_BUFFER_SIZE`."""
    return struct.pack(">IIII", 0, size, least, most)


def state_blob(code: int, blob: bytes, offset: int) -> bytes:
    """Return the reply of `Code.GET_STATE_BLOB`: what is left after ``offset``."""
    rest = blob[offset:]
    return struct.pack(">IIII", code, 0, len(rest), len(rest)) + rest


def information(text: bytes, offset: int) -> bytes:
    """Return the reply of `Code.GET_INFO`: a piece of ``text``, with a zero at its end.

    Raises:
        FormatError: There is nothing at ``offset``.
    """
    if offset >= len(text):
        raise FormatError(f"no information at {offset}", rule="V52")
    piece = (text + b"\0")[offset : offset + _INFO_SIZE]
    return struct.pack(">III", 0, len(text) + 1, len(piece)) + piece


def _with_payload(received: bytes | bytearray, length_at: int) -> int:
    head = length_at + _U32.size
    if len(received) < head:
        return head
    length = int(_U32.unpack_from(received, length_at)[0])
    if length > MAX_PAYLOAD:
        raise FormatError(f"a request with {length} bytes, {MAX_PAYLOAD} at most", rule="V51")
    return head + length
