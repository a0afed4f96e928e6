"""TPM state on its way from one swtpm to another (V31 to V33 of ``spec/vtpm.md``).

The control channel carries the fields of a state (`formats.state.swtpm`), wrapped in
one more field, which may be encrypted by a migration key. Bytes to values and back;
nothing is decrypted here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.errors import FormatError, UnsupportedError
from formats.state.swtpm import (
    EncryptedState,
    PlainState,
    decode_fields,
    decode_header,
    encode_fields,
    encode_header,
    encrypted_of,
    require_tags,
)

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer

_ENCRYPTED: Final = 0x01
_MIGRATION_ENCRYPTED: Final = 0x02
_MIGRATION: Final = 0x04
_LARGE_KEY: Final = 0x08
_LARGE_MIGRATION_KEY: Final = 0x10

_DATA, _MAC, _MIGRATION_DATA, _MIGRATION_CIPHERTEXT, _MIGRATION_IV = 1, 3, 4, 5, 7


def decode_transfer(transfer: ReadableBuffer, what: str) -> bytes | EncryptedState:
    """Return the fields that a transfer carries, in the clear or encrypted (V32).

    Args:
        transfer: The bytes from the channel.
        what: Its name in messages.

    Raises:
        TruncatedImageError, FormatError: It is damaged.
        UnsupportedError: The state itself is encrypted by the key of its files.
    """
    content = bytes(transfer)
    start, flags = decode_header(content, what)
    if flags & (_ENCRYPTED | _LARGE_KEY):
        raise UnsupportedError(
            f"{what} is encrypted by the key of the files it comes from",
            feature="state that is encrypted by swtpm's --key on its way",
        )
    if not flags & _MIGRATION or flags & ~0x1F:
        raise FormatError(f"{what} is not in transfer: it has flags {flags:#x}", rule="V32")
    fields = decode_fields(content, start, what)
    if not flags & _MIGRATION_ENCRYPTED:
        require_tags(fields, (_MIGRATION_DATA,), what)
        return fields[_MIGRATION_DATA]
    require_tags(fields, (_MIGRATION_CIPHERTEXT, _MAC, _MIGRATION_IV), what)
    key_size = 32 if flags & _LARGE_MIGRATION_KEY else 16
    return encrypted_of(
        fields[_MIGRATION_CIPHERTEXT], fields[_MAC], fields[_MIGRATION_IV], key_size, what
    )


def encode_transfer(fields: bytes | EncryptedState) -> bytes:
    """Return a transfer of fields in the clear, or of encrypted fields (V31)."""
    if isinstance(fields, EncryptedState):
        flags = _MIGRATION | _MIGRATION_ENCRYPTED
        if fields.key_size == 32:
            flags |= _LARGE_MIGRATION_KEY
        body = encode_fields(
            {
                _MIGRATION_CIPHERTEXT: fields.ciphertext,
                _MAC: fields.mac,
                _MIGRATION_IV: fields.iv,
            }
        )
    else:
        flags, body = _MIGRATION, encode_fields({_MIGRATION_DATA: fields})
    return encode_header(flags, body)


def decode_data(fields: bytes, what: str) -> PlainState:
    """Return the state that decrypted or clear fields hold (F9).

    Raises:
        FormatError: They hold something else.
    """
    found = decode_fields(fields, 0, what)
    require_tags(found, (_DATA,), what)
    if not found[_DATA]:
        raise FormatError(f"{what} has no data", rule="F9")
    return PlainState(found[_DATA])


def encode_data(state: PlainState) -> bytes:
    """Return the fields of a state in the clear (F9)."""
    return encode_fields({_DATA: state.data})
