"""A few commands of a TPM 2.0 as bytes, and what their responses say.

Source: TCG, *TPM Library*, parts 2 and 3.
"""

from __future__ import annotations

import struct

OWNER = 0x40000001
LOCKOUT = 0x4000000A
#: The owner writes and reads it, and wrong guesses do not lock it.
OWNER_ATTRIBUTES = 1 << 1 | 1 << 17 | 1 << 25
#: Its own authorisation reads and writes it, and wrong guesses count.
AUTH_ATTRIBUTES = 1 << 2 | 1 << 18

_PLAIN, _SESSIONS = 0x8001, 0x8002
_PASSWORD = 0x40000009


def plain(code: int, parameters: bytes = b"") -> bytes:
    """Return a command without handles and authorisation."""
    return struct.pack(">HII", _PLAIN, 10 + len(parameters), code) + parameters


def authorised(code: int, handles: list[int], parameters: bytes, password: bytes = b"") -> bytes:
    """Return a command that a password authorises."""
    session = struct.pack(">IHBH", _PASSWORD, 0, 0, len(password)) + password
    body = b"".join(struct.pack(">I", handle) for handle in handles)
    body += struct.pack(">I", len(session)) + session + parameters
    return struct.pack(">HII", _SESSIONS, 10 + len(body), code) + body


STARTUP = plain(0x144, bytes(2))
STARTUP_STATE = plain(0x144, b"\0\1")
SHUTDOWN_STATE = plain(0x145, b"\0\1")
SHUTDOWN_CLEAR = plain(0x145, bytes(2))


def get_random(count: int) -> bytes:
    return plain(0x17B, struct.pack(">H", count))


def pcr_extend(pcr: int, digest: bytes) -> bytes:
    return authorised(0x182, [pcr], struct.pack(">IH", 1, 0xB) + digest)


def pcr_read(pcr: int) -> bytes:
    selected = bytearray(3)
    selected[pcr // 8] = 1 << pcr % 8
    return plain(0x17E, struct.pack(">IHB", 1, 0xB, 3) + bytes(selected))


def nv_define(index: int, size: int, attributes: int = OWNER_ATTRIBUTES) -> bytes:
    public = struct.pack(">IHIHH", index, 0xB, attributes, 0, size)
    return authorised(0x12A, [OWNER], struct.pack(">HH", 0, len(public)) + public)


def nv_write(index: int, data: bytes, offset: int = 0) -> bytes:
    return authorised(
        0x137, [OWNER, index], struct.pack(">H", len(data)) + data + struct.pack(">H", offset)
    )


def nv_read(index: int, size: int, *, handle: int = OWNER, password: bytes = b"") -> bytes:
    return authorised(0x14E, [handle, index], struct.pack(">HH", size, 0), password)


def create_rsa_key(bits: int, number: int = 0) -> bytes:
    """Return CreatePrimary of an RSA signing key: it takes long. Each number is another key."""
    unique = number.to_bytes(4, "big")
    template = struct.pack(">HHIH", 0x0001, 0xB, 0x00040072, 0)
    template += struct.pack(">HHHIH", 0x10, 0x10, bits, 0, len(unique)) + unique
    sensitive = struct.pack(">HHH", 4, 0, 0)
    parameters = sensitive + struct.pack(">H", len(template)) + template + struct.pack(">HI", 0, 0)
    return authorised(0x131, [OWNER], parameters)


def code_of(response: bytes) -> int:
    return int(struct.unpack_from(">HII", response)[2])


def data_of(response: bytes) -> bytes:
    """Return what NV_Read returned."""
    size = struct.unpack_from(">H", response, 14)[0]
    return response[16 : 16 + size]
