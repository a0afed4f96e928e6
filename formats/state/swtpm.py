"""TPM state as swtpm stores it: a header, and fields after it (F7 to F10, F13).

Bytes to values and back; nothing is decrypted here. The rules are those of
``spec/foreign-state.md``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Final

from formats.errors import FormatError, TruncatedImageError, UnsupportedError

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer

#: Bytes before the data of a state in the clear: header and one field's head.
OVERHEAD: Final = 16
#: Bytes of the HMAC over an encrypted state.
MAC_SIZE: Final = 32

_HEADER: Final = struct.Struct(">BBHHI")  # version, least version, header size, flags, total
_FIELD: Final = struct.Struct(">HI")  # tag, size

_VERSION: Final = 2
_LEAST_VERSION: Final = 1

_ENCRYPTED: Final = 0x01
_LARGE_KEY: Final = 0x08

_DATA, _CIPHERTEXT, _MAC, _IV = 1, 2, 3, 6


class Slot(IntEnum):
    """The states of a TPM; their numbers are their slots in a linear file (F7, F14)."""

    PERMANENT = 0
    VOLATILE = 1
    SAVED = 2


class TpmVersion(StrEnum):
    """Which TPM a state is of."""

    TPM_12 = "1.2"
    TPM_2 = "2.0"


#: What is at byte 2 of the data of a TPM 2.0 (F13).
_TPM_2_MAGIC: Final = {Slot.PERMANENT: b"\xab\x36\x47\x23", Slot.VOLATILE: b"\x45\x63\x78\x89"}
#: The same, of any state.
TPM_2_MAGIC: Final = frozenset(_TPM_2_MAGIC.values())
_TPM_12_PERMANENT: Final = b"\x00\x01"


@dataclass(frozen=True, slots=True)
class PlainState:
    """A state in the clear.

    Attributes:
        data: The state as libtpms writes and reads it; never empty after decoding.
    """

    data: bytes


@dataclass(frozen=True, slots=True)
class EncryptedState:
    """A state that swtpm encrypted (F10); nothing in it is verified here.

    Attributes:
        ciphertext: A multiple of `key_size` bytes.
        mac: 32 bytes.
        iv: `key_size` bytes.
        key_size: Bytes of its key, 16 or 32.
    """

    ciphertext: bytes
    mac: bytes
    iv: bytes
    key_size: int


def decode_state(state: ReadableBuffer, what: str = "the TPM state") -> PlainState | EncryptedState:
    """Return the parts of a state (F8, F9).

    Args:
        state: The whole content of a state file, or of a place in a linear file.
        what: Its name in messages.

    Raises:
        TruncatedImageError: It ends before its header says it does.
        FormatError: It is not a state of swtpm's, or it is damaged.
        UnsupportedError: It has another version, or is in the form of a migration.
    """
    content = bytes(state)
    start, flags = decode_header(content, what)
    if flags & ~(_ENCRYPTED | _LARGE_KEY):
        raise UnsupportedError(f"{what} has flags {flags:#x}", feature="TPM state on its way")
    fields = decode_fields(content, start, what)
    if not flags & _ENCRYPTED:
        require_tags(fields, (_DATA,), what)
        if not fields[_DATA]:
            raise FormatError(f"{what} has no data", rule="F9")
        return PlainState(fields[_DATA])
    require_tags(fields, (_CIPHERTEXT, _MAC, _IV), what)
    key_size = 32 if flags & _LARGE_KEY else 16
    return encrypted_of(fields[_CIPHERTEXT], fields[_MAC], fields[_IV], key_size, what)


def encode_state(state: PlainState | EncryptedState) -> bytes:
    """Return the content of a state file (F8, F9)."""
    if isinstance(state, PlainState):
        flags, fields = 0, {_DATA: state.data}
    else:
        flags = _ENCRYPTED | (_LARGE_KEY if state.key_size == 32 else 0)
        fields = {_CIPHERTEXT: state.ciphertext, _MAC: state.mac, _IV: state.iv}
    return encode_header(flags, encode_fields(fields))


def tpm_version(permanent: PlainState) -> TpmVersion:
    """Return the version of the TPM that has this permanent state (F13).

    Raises:
        FormatError: It is not the state of a TPM.
    """
    if permanent.data[2:6] == _TPM_2_MAGIC[Slot.PERMANENT]:
        return TpmVersion.TPM_2
    if permanent.data[:2] == _TPM_12_PERMANENT:
        return TpmVersion.TPM_12
    raise FormatError("the state is not the permanent state of a TPM", offset=OVERHEAD, rule="F13")


def validate_slot(state: PlainState, slot: Slot, version: TpmVersion) -> None:
    """Check that a state is what its name or slot says (F13).

    Raises:
        FormatError: It is not.
    """
    if version is TpmVersion.TPM_2 and slot in _TPM_2_MAGIC:
        agrees = state.data[2:6] == _TPM_2_MAGIC[slot]
    elif slot is Slot.PERMANENT:
        agrees = tpm_version(state) is version
    else:
        agrees = state.data[2:6] not in _TPM_2_MAGIC.values()
    if not agrees:
        raise FormatError(
            f"the {slot.name.lower()} state is not that of a TPM {version}",
            offset=OVERHEAD,
            rule="F13",
        )


def decode_header(content: bytes, what: str) -> tuple[int, int]:
    """Return where the fields of a whole state begin, and its flags (F8).

    Raises:
        TruncatedImageError, FormatError, UnsupportedError: As `decode_state`.
    """
    if len(content) < _HEADER.size:
        raise TruncatedImageError(
            f"{what} is cut short: it has {len(content)} bytes, and its header alone has 10",
            rule="F8",
        )
    version, least, header_size, flags, total = _HEADER.unpack_from(content)
    if not (version >= least >= 1 and header_size >= _HEADER.size and total >= header_size):
        raise FormatError(f"{what} does not begin as swtpm's state does", offset=0, rule="F8")
    if version < _VERSION or least > _VERSION:
        raise UnsupportedError(
            f"{what} is of version {version}, to be read by version {least}",
            feature="versions of swtpm's state other than 2",
        )
    if len(content) < total:
        raise TruncatedImageError(
            f"{what} is cut short: it has {len(content)} bytes of {total}", rule="F8"
        )
    if len(content) > total:
        raise FormatError(f"{what} continues after its {total} bytes", rule="F8")
    return header_size, flags


def encode_header(flags: int, body: bytes) -> bytes:
    """Return the header of a state followed by its fields (F8)."""
    total = _HEADER.size + len(body)
    return _HEADER.pack(_VERSION, _LEAST_VERSION, _HEADER.size, flags, total) + body


def decode_fields(content: bytes, start: int, what: str) -> dict[int, bytes]:
    """Return the content of each field by its tag (F9).

    Raises:
        FormatError: They do not fit into ``content``.
    """
    fields: dict[int, bytes] = {}
    while start < len(content):
        if start + _FIELD.size > len(content):
            raise FormatError(f"{what} ends inside a field", offset=start, rule="F9")
        tag, size = _FIELD.unpack_from(content, start)
        end = start + _FIELD.size + size
        if end > len(content) or tag in fields:
            raise FormatError(
                f"{what} has a field with tag {tag} and {size} bytes that does not fit",
                offset=start,
                rule="F9",
            )
        fields[tag] = content[start + _FIELD.size : end]
        start = end
    return fields


def encode_fields(fields: dict[int, bytes]) -> bytes:
    """Return fields as they follow a header (F9)."""
    return b"".join(_FIELD.pack(tag, len(value)) + value for tag, value in fields.items())


def encrypted_of(
    ciphertext: bytes, mac: bytes, iv: bytes, key_size: int, what: str
) -> EncryptedState:
    """Return the encrypted state that fields make up (F10).

    Raises:
        FormatError: Their sizes contradict each other.
    """
    if not ciphertext or len(ciphertext) % key_size or len(mac) != MAC_SIZE or len(iv) != key_size:
        raise FormatError(f"{what} is encrypted, and its sizes contradict each other", rule="F10")
    return EncryptedState(ciphertext, mac, iv, key_size)


def require_tags(fields: dict[int, bytes], tags: tuple[int, ...], what: str) -> None:
    """Check that the fields are exactly these, in this order.

    Raises:
        FormatError: They are not these.
    """
    if tuple(fields) != tags:
        raise FormatError(f"{what} has the fields {tuple(fields)} instead of {tags}", rule="F9")
