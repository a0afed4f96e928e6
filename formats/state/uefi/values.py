"""The data of variables as plain values, and back from text (F41, F42)."""

from __future__ import annotations

import hashlib
import re
import struct
from typing import TYPE_CHECKING, Any, Final

from formats.errors import FieldError, FormatError
from formats.state.uefi import device_path
from formats.state.uefi.boot import decode_option, decode_order, encode_order
from formats.state.uefi.names import Kind, kind_of, number_size
from formats.state.uefi.signatures import X509, Signature, decode_lists

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable

    from formats.state.uefi_vars import UefiVariable

_TRUE: Final = {"true": b"\1", "false": b"\0"}
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})+")
_TIME: Final = struct.Struct("<HBBBBB")
#: Attributes by their bits, as the UEFI specification names them.
_ATTRIBUTES: Final = (
    (0x01, "non-volatile"),
    (0x02, "boot-service"),
    (0x04, "runtime"),
    (0x08, "hardware-error"),
    (0x10, "authenticated"),
    (0x20, "time-based"),
    (0x40, "append"),
    (0x80, "enhanced"),
)


def decode_value(variable: UefiVariable) -> tuple[Kind, Any]:
    """Return what the data of a variable say, as plain data, and what they are.

    Data that are not as their name says are `Kind.BYTES`, as those of unknown names are.
    Bytes are in hexadecimal.
    """
    kind = kind_of(variable.guid, variable.name)
    data = variable.data
    try:
        if kind in (Kind.BOOLEAN, Kind.NUMBER):
            return kind, _number(variable, kind)
        return kind, _DECODERS[kind](data)
    except FormatError:
        return Kind.BYTES, data.hex()


def _number(variable: UefiVariable, kind: Kind) -> int | bool:
    if len(variable.data) != number_size(variable.guid, variable.name):
        raise FormatError("a number of another size", rule="F42")
    number = int.from_bytes(variable.data, "little")
    if kind is Kind.NUMBER:
        return number
    if number > 1:
        raise FormatError("neither true nor false", rule="F42")
    return bool(number)


def _order(data: bytes) -> list[str]:
    return [f"{number:04X}" for number in decode_order(data)]


def _entry(data: bytes) -> dict[str, Any]:
    option = decode_option(data)
    plain: dict[str, Any] = {"title": option.title, "active": option.active}
    if option.hidden:
        plain["hidden"] = True
    try:
        paths = option.path_texts()
    except FormatError:
        paths = [option.paths.hex()]
    plain["path"] = paths[0] if len(paths) == 1 else paths
    if option.data:
        plain["data"] = option.data.hex()
    return plain


def _text(data: bytes) -> str:
    text = data.removesuffix(b"\0")
    if not text.isascii():
        raise FormatError("the text is not ASCII", rule="F42")
    return text.decode("ascii")


def _signatures(data: bytes) -> list[dict[str, Any]]:
    return [describe_signature(signature) for signature in decode_lists(data)]


def describe_signature(signature: Signature) -> dict[str, Any]:
    """Return a signature as plain data; a certificate by the SHA-256 of its bytes."""
    plain: dict[str, Any] = {"kind": signature.kind_name, "owner": str(signature.owner)}
    if signature.kind == X509:
        return plain | {"fingerprint": hashlib.sha256(signature.data).hexdigest()}
    return plain | {"hash": signature.data.hex()}


_DECODERS: Final[dict[Kind, Callable[[bytes], Any]]] = {
    Kind.ORDER: _order,
    Kind.ENTRY: _entry,
    Kind.PATH: device_path.text_of,
    Kind.TEXT: _text,
    Kind.SIGNATURES: _signatures,
    Kind.BYTES: bytes.hex,
}


def encode_value(guid: uuid.UUID, name: str, text: str) -> bytes:
    """Return the data that a text says for a variable of this name (F42).

    Args:
        guid: Name space of the variable.
        name: Its name.
        text: ``true`` or ``false``; a number, decimal or after ``0x`` hexadecimal; numbers of
            entries with commas between them, as in ``0001,0000``; ASCII; and for all others
            bytes in hexadecimal.

    Raises:
        FieldError: The text does not say any.
    """
    kind = kind_of(guid, name)
    if kind is Kind.BOOLEAN:
        if text in _TRUE:
            return _TRUE[text]
        raise FieldError(name, f"{text!r} is neither true nor false")
    if kind is Kind.NUMBER:
        return _encoded_number(name, text, number_size(guid, name))
    if kind is Kind.ORDER:
        numbers = text.split(",")
        if all(re.fullmatch(r"[0-9a-fA-F]{4}", number) for number in numbers):
            return encode_order(tuple(int(number, 16) for number in numbers))
        raise FieldError(name, f"{text!r} is not an order of entries, such as 0001,0000")
    if kind is Kind.TEXT:
        if text.isascii() and "\0" not in text:
            return text.encode("ascii") + b"\0"
        raise FieldError(name, "the text is not ASCII")
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    raise FieldError(name, f"{text!r} is not bytes in hexadecimal")


def _encoded_number(name: str, text: str, size: int) -> bytes:
    if re.fullmatch(r"[0-9]{1,20}|0x[0-9a-fA-F]{1,16}", text):
        number = int(text, 0) if text.startswith("0x") else int(text)
        if number < 1 << 8 * size:
            return number.to_bytes(size, "little")
    raise FieldError(name, f"{text!r} is not a number of up to {size} bytes")


def describe_attributes(attributes: int) -> list[str]:
    """Return the names of the bits that are set; those without one in hexadecimal."""
    names = [name for bit, name in _ATTRIBUTES if attributes & bit]
    rest = attributes & ~0xFF
    return [*names, hex(rest)] if rest else names


def describe_time(time: bytes) -> str:
    """Return an EFI_TIME as text, in UTC, to the second."""
    year, month, day, hour, minute, second = _TIME.unpack_from(time)
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
