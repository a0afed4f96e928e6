"""The records of a store of variables: walking them as firmware does, and writing them (F30-F33).

The rules are those of ``spec/foreign-state.md``.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.errors import FieldError
from formats.state.uefi_vars import UefiVariable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from formats.state.uefi.flaws import Flaws

#: Bytes of the header of a store, which the records follow.
STORE_HEADER_SIZE: Final = 28

_START: Final = 0x55AA
_START_BYTES: Final = struct.pack("<H", _START)
# Start, state, reserved, attributes, count, time, index of the key, sizes of name and data, GUID.
_AUTHENTICATED: Final = struct.Struct("<HBBIQ16sIII16s")
_PLAIN: Final = struct.Struct("<HBBIII16s")
_UNSET: Final = 0xFFFF_FFFF
_ALIGNMENT: Final = 4

_UNWRITTEN: Final = 0xFF
_HEADER_VALID: Final = 0x7F
_ADDED: Final = 0x3F
#: A record that is to be replaced: it counts until there is a newer one.
_IN_DELETION: Final = 0x3E
_LIVE: Final = (_ADDED, _IN_DELETION)
_DELETED_BIT: Final = 0x02

_TIME_SIZE: Final = 16
#: Of a name with its end, in bytes.
_LONGEST_NAME: Final = 2048
#: Of ``time``, for a variable whose changes are authenticated by it.
TIME_BASED: Final = 0x20


@dataclass(frozen=True, slots=True)
class _Record:
    """One record, as its header has it.

    Attributes:
        offset: In the records, of its header.
        end: Where the next one begins.
        state: Its state byte.
        variable: What it says; None if it is not to be read.
    """

    offset: int
    end: int
    state: int
    variable: UefiVariable | None


def header_size(*, authenticated: bool) -> int:
    """Return the size of a record's header, in bytes."""
    return (_AUTHENTICATED if authenticated else _PLAIN).size


def read_records(
    region: bytes, offset: int, flaws: Flaws, *, authenticated: bool, rescue: bool = False
) -> tuple[UefiVariable, ...]:
    """Return the variables that firmware finds in a store (F31), in its order.

    Args:
        region: The store without its header.
        offset: Of that in the flash, for flaws.
        flaws: Gets what is wrong.
        authenticated: Which form its records have.
        rescue: Go on where firmware stops, and return what it would not find as well (F39).
    """
    found: dict[tuple[uuid.UUID, str], _Record] = {}
    for record in _walk(region, offset, flaws, authenticated=authenticated, rescue=rescue):
        if record.variable is None:
            continue
        key = record.variable.key
        other = found.get(key)
        if other is None or (other.state == _IN_DELETION and record.state == _ADDED):
            found[key] = record
        elif record.state == _ADDED:
            flaws.add(offset + record.offset, "F31", f"a second {record.variable.name!r}")
    ordered = sorted(found.values(), key=lambda record: record.offset)
    return tuple(record.variable for record in ordered if record.variable is not None)


def _walk(
    region: bytes, offset: int, flaws: Flaws, *, authenticated: bool, rescue: bool
) -> Iterator[_Record]:
    position, found_after_gap = 0, False
    while True:
        record = _record(region, position, offset, flaws, authenticated=authenticated)
        if record is not None:
            if found_after_gap and record.variable and record.variable.attributes & TIME_BASED:
                # The gap may be the header of a variable whose data imitate records.
                name = record.variable.name
                flaws.add(offset + position, "F39", f"{name!r}, which may be an imitation,")
            yield record
            position = record.end
            continue
        rest = region[position:]
        if not rest.strip(b"\xff"):
            return
        flaws.add(offset + position, "F31", "the variables are followed by something else")
        following = _next_start(region, position, authenticated=authenticated) if rescue else None
        if following is None:
            return
        position, found_after_gap = following, True


def _next_start(region: bytes, position: int, *, authenticated: bool) -> int | None:
    """Return where the next record lies of which everything makes sense."""
    from formats.state.uefi.flaws import Flaws  # noqa: PLC0415  a type elsewhere

    at = region.find(_START_BYTES, position + 1)
    while at >= 0:
        if at % _ALIGNMENT == 0:
            record = _record(region, at, 0, Flaws(), authenticated=authenticated)
            if record is not None and record.variable is not None:
                return at
        at = region.find(_START_BYTES, at + 1)
    return None


def _record(
    region: bytes, position: int, offset: int, flaws: Flaws, *, authenticated: bool
) -> _Record | None:
    """Return the record at a position, or None where firmware finds none."""
    header = _AUTHENTICATED if authenticated else _PLAIN
    if position + header.size > len(region):
        return None
    count, time, key_index = 0, None, 0
    if authenticated:
        (start, state, _, attributes, count, time, key_index, name_size, data_size, guid) = (
            header.unpack_from(region, position)
        )
    else:
        start, state, _, attributes, name_size, data_size, guid = header.unpack_from(
            region, position
        )
    if start != _START:
        return None
    at = position + header.size
    if state == _UNWRITTEN or _UNSET in (attributes, name_size, data_size):
        flaws.add(offset + position, "F32", "a variable whose header was not written to its end")
        return _Record(position, _aligned(at), state, None)
    end = at + name_size + data_size
    if end > len(region):
        flaws.add(offset + position, "F31", "a variable that does not end within the store")
        return None
    skipped = _Record(position, _aligned(end), state, None)
    if state not in _LIVE:
        if state & _DELETED_BIT and state != _HEADER_VALID:
            flaws.add(offset + position, "F31", f"a variable in the unknown state {state:#04x}")
        return skipped
    name = _name(region[at : at + min(name_size, _LONGEST_NAME + 2)])
    if name is None or data_size == 0:
        flaws.add(offset + position, "F31", "a variable without a name or without data")
        return skipped
    variable = UefiVariable(
        guid=uuid.UUID(bytes_le=guid),
        name=name,
        attributes=attributes,
        data=region[at + name_size : end],
        time=time if time is not None and any(time) else None,
        count=count,
        key_index=key_index,
    )
    return _Record(position, _aligned(end), state, variable)


def _name(content: bytes) -> str | None:
    """Return the name that UCS-2 has, or None if it is not one."""
    if not 4 <= len(content) <= _LONGEST_NAME or len(content) % 2 or content[-2:] != b"\0\0":
        return None
    name = content[:-2].decode("utf-16-le", "surrogatepass")
    return None if "\0" in name else name


def write_records(variables: Iterable[UefiVariable], *, authenticated: bool) -> bytes:
    """Return the records of variables, one after the other (F33).

    Raises:
        FieldError: A variable cannot be in such a store.
    """
    parts = []
    for variable in variables:
        _check(variable, authenticated=authenticated)
        name = encoded_name(variable.name)
        sizes = len(name), len(variable.data)
        guid = variable.guid.bytes_le
        if authenticated:
            head = _AUTHENTICATED.pack(
                _START,
                _ADDED,
                0,
                variable.attributes,
                variable.count,
                variable.time or bytes(_TIME_SIZE),
                variable.key_index,
                *sizes,
                guid,
            )
        else:
            head = _PLAIN.pack(_START, _ADDED, 0, variable.attributes, *sizes, guid)
        record = head + name + variable.data
        parts.append(record.ljust(_aligned(len(record)), b"\xff"))
    return b"".join(parts)


def encoded_name(name: str) -> bytes:
    """Return a name as the store has it, with its end.

    Raises:
        FieldError: It is empty or contains a NUL.
    """
    if not name or "\0" in name:
        raise FieldError("", f"a UEFI variable cannot have the name {name!r}")
    encoded = name.encode("utf-16-le", "surrogatepass") + b"\0\0"
    if len(encoded) > _LONGEST_NAME:
        raise FieldError(
            name[:32], f"the name of a UEFI variable has at most {_LONGEST_NAME} bytes"
        )
    return encoded


def _check(variable: UefiVariable, *, authenticated: bool) -> None:
    if not variable.data:
        raise FieldError(variable.name, "a UEFI variable without data is one that is deleted")
    if variable.digest is not None:
        raise FieldError(
            variable.name, "QEMU's digest of its signer has no place in edk2's flash (F43)"
        )
    if not authenticated and (variable.attributes & TIME_BASED or variable.time):
        raise FieldError(
            variable.name, "this store is for firmware without authenticated variables (F30)"
        )


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
