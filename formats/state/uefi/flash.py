"""The whole flash: its variables read, written and repaired (F30 to F39).

The rules are those of ``spec/foreign-state.md``.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.errors import (
    EmptyImageError,
    FieldError,
    FormatError,
    TruncatedImageError,
)
from formats.state.edk2_varstore import VariableFlash, decode_flash, header_end
from formats.state.uefi.fault_tolerant import (
    Areas,
    blank_work_area,
    find_work_area,
    is_sound,
    pending_write,
)
from formats.state.uefi.flaws import Flaw, Flaws
from formats.state.uefi.records import STORE_HEADER_SIZE, read_records, write_records

if TYPE_CHECKING:
    from collections.abc import Iterable

    from formats.devices.device import ReadableBuffer
    from formats.state.uefi_vars import UefiVariable

_SIGNATURE_AT: Final = 40
_GUID_AT: Final = 16
_HEAD_SIZE: Final = 72
#: No build of edk2 has a larger one, in bytes.
_LARGEST_STORE: Final = 4 << 20
_VOLUME_GUID: Final = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
_STORE_GUID: Final = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
_HINT: Final = "blobstore edit --repair rescues what is left of it"


@dataclass(frozen=True, slots=True)
class _Build:
    """How a build of edk2 divides its flash. Sizes in bytes."""

    volume_size: int
    store_size: int
    attributes: int
    block_size: int
    areas: Areas

    def headers(self, flash_size: int) -> bytes:
        """Return the headers of the volume and of an authenticated store."""
        whole = self.volume_size if self.block_size == _BLOCK else flash_size
        blocks = whole // self.block_size
        head = bytearray(
            struct.pack(
                "<16x16sQ4sIHHHBBIIII",
                *(_VOLUME_GUID, self.volume_size, b"_FVH", self.attributes),
                *(_HEAD_SIZE, 0, 0, 0, 2, blocks, self.block_size, 0, 0),
            )
        )
        total = sum(struct.unpack(f"<{_HEAD_SIZE // 2}H", head))
        struct.pack_into("<H", head, 50, -total & 0xFFFF)
        return bytes(head) + struct.pack(
            "<16sIBBHI", _STORE_GUID, self.store_size, 0x5A, 0xFE, 0, 0
        )


_BLOCK: Final = 4096
_NOR_BLOCK: Final = 256 << 10
#: x86, of 128 KiB and of 528 KiB; and the other machines, whose volume is part of their flash.
_SMALL: Final = _Build(0x20000, 0xDFB8, 0x4FEFF, _BLOCK, Areas(0xF000, 0x1000, 0x10000))
_LARGE: Final = _Build(0x84000, 0x3FFB8, 0x4FEFF, _BLOCK, Areas(0x41000, 0x1000, 0x42000))
_NOR: Final = _Build(0xC0000, 0x3FFB8, 0xE36, _NOR_BLOCK, Areas(_NOR_BLOCK, _NOR_BLOCK, _NOR_BLOCK))


@dataclass(frozen=True, slots=True)
class VariableStore:
    """The variables in a flash.

    Attributes:
        variables: Those that firmware finds, in the order of the store.
        flaws: What breaks a rule or is left of an interrupted write.
        authenticated: Whether changes of its variables can be authenticated (Secure Boot).
        used: Bytes that these variables take.
        capacity: Bytes for variables.
    """

    variables: tuple[UefiVariable, ...]
    flaws: tuple[Flaw, ...]
    authenticated: bool
    used: int
    capacity: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the parts of a flash lie; the records without the header of their store."""

    records_at: int
    records_size: int
    authenticated: bool
    areas: Areas | None


def read_store(flash: ReadableBuffer) -> VariableStore:
    """Return the variables that firmware would find when it starts (F31, F35).

    Raises:
        EmptyImageError: Nothing was written to it yet, or its beginning was erased.
        ForeignImageError, TruncatedImageError: It is not a flash with variables.
        FormatError: Its headers are damaged.
    """
    content, place, flaws = _open(bytes(flash))
    return _read(content, place, flaws)


def write_store(flash: ReadableBuffer, variables: Iterable[UefiVariable]) -> bytes:
    """Return a flash with these variables and no others (F33).

    Everything else in it stays, except that no write is under way any more (F36).

    Args:
        flash: As for `read_store`.
        variables: All of them; their order is that of the records.

    Raises:
        FieldError: They do not fit, or one cannot be in this store.
        StorageError: As `read_store`.
    """
    content, place, _ = _open(bytes(flash))
    return _written(content, place, tuple(variables))


def repair_store(flash: ReadableBuffer) -> tuple[bytes, VariableStore]:
    """Return a flash from which firmware starts, and what was rescued (F39).

    Args:
        flash: Torn or damaged; its headers may be lost. A sound one is only compacted.

    Returns:
        The flash, and its variables with what was wrong before.

    Raises:
        EmptyImageError: It is blank.
        ForeignImageError: It is something else: firmware code, for example.
        FormatError: Nothing in it can be rescued.
    """
    content = bytes(flash)
    if not content.strip(b"\xff") or not content.strip(b"\0"):
        raise EmptyImageError(
            "the flash is blank: there is nothing to repair",
            rule="F39",
            hint="import the template of a new machine",
        )
    try:
        content, place, flaws = _open(content)
    except FormatError as error:
        content, place, flaws = _without_headers(content, error)
    store = _read(content, place, flaws, rescue=True)
    return _written(content, place, store.variables), store


def _open(flash: bytes) -> tuple[bytes, _Place, Flaws]:
    """Return the flash as firmware has it after its start, and where things lie in it."""
    flaws = Flaws()
    build = _build_of(len(flash))
    finished = flash
    try:
        headers = decode_flash(flash)
    except FormatError as error:
        # A write that was copying them counts as finished, if it is known where it is noted.
        if build is not None and is_sound(flash, build.areas.work_at):
            finished = _finished(flash, build.areas, flaws)
        if finished is flash:
            raise _with_hint(error) from None
        headers = _decode(finished)
    else:
        areas = _areas(flash, headers)
        if areas is not None:
            finished = _finished(flash, areas, flaws)
        if finished is not flash:
            headers = _decode(finished)
    flash = finished
    store_at = header_end(flash)
    if headers.store_size > _LARGEST_STORE:
        raise FormatError(
            f"a store of {headers.store_size} bytes is larger than any", offset=store_at, rule="F30"
        )
    areas = _areas(flash, headers)
    if areas is None and build is not None and build.volume_size == headers.volume_size:
        flaws.add(build.areas.work_at, "F34", "the work area of fault-tolerant writes is damaged")
        areas = build.areas if store_at + headers.store_size <= build.areas.work_at else None
    place = _Place(
        store_at + STORE_HEADER_SIZE,
        headers.store_size - STORE_HEADER_SIZE,
        headers.authenticated,
        areas,
    )
    return flash, place, flaws


def _areas(flash: bytes, headers: VariableFlash) -> Areas | None:
    store_end = header_end(flash) + headers.store_size
    return find_work_area(flash, store_end, headers.volume_size)


def _decode(flash: bytes) -> VariableFlash:
    try:
        return decode_flash(flash)
    except FormatError as error:
        raise _with_hint(error) from None


def _with_hint(error: FormatError) -> FormatError:
    if isinstance(error, EmptyImageError):
        error.hint = f"firmware prepares a new flash at its first start; of one in use, {_HINT}"
    elif not isinstance(error, TruncatedImageError):
        error.hint = error.hint or _HINT
    return error


def _finished(flash: bytes, areas: Areas, flaws: Flaws) -> bytes:
    """Finish a write as firmware does when it starts (F35)."""
    pending = pending_write(flash, areas)
    if pending is None:
        return flash
    flaws.add(areas.work_at, "F35", "a fault-tolerant write is not finished")
    spare = flash[areas.spare_at : areas.spare_at + pending.size]
    return flash[: pending.target] + spare + flash[pending.target + pending.size :]


def _without_headers(flash: bytes, cause: FormatError) -> tuple[bytes, _Place, Flaws]:
    """Open a flash whose headers are lost: from its spare area, or with new ones (F39)."""
    volume = flash[_SIGNATURE_AT : _SIGNATURE_AT + 4] == b"_FVH"
    build = _build_of(len(flash))
    if (
        build is None
        or isinstance(cause, TruncatedImageError)
        or cause.rule not in ("F19", "F39")
        or (volume and flash[_GUID_AT : _GUID_AT + 16] != _VOLUME_GUID)
    ):
        raise cause
    areas = build.areas
    copied = min(areas.work_at, areas.spare_size)
    restored = flash[areas.spare_at : areas.spare_at + copied] + flash[copied:]
    try:
        content, place, flaws = _open(restored)
    except FormatError:  # there is no copy of the store in the spare area
        pass
    else:
        flaws.add(0, "F39", "the store is lost; its copy in the spare area is used,")
        return content, place, flaws
    flaws = Flaws()
    flaws.add(0, "F39", "the headers of the flash are lost")
    headers = build.headers(len(flash))
    restored = headers + flash[len(headers) :]
    place = _Place(
        len(headers), build.store_size - STORE_HEADER_SIZE, authenticated=True, areas=areas
    )
    decode_flash(restored)  # what follows the volume may still be something else
    if not _read(restored, place, Flaws(), rescue=True).variables:
        raise FormatError(
            "no variable can be rescued from this flash",
            rule="F39",
            hint="restore a backup, or import the template of a new machine",
        ) from cause
    return restored, place, flaws


def _build_of(size: int) -> _Build | None:
    for build in (_SMALL, _LARGE):
        if size == build.volume_size:
            return build
    return _NOR if size >= _NOR.volume_size and size % _NOR_BLOCK == 0 else None


def _read(flash: bytes, place: _Place, flaws: Flaws, *, rescue: bool = False) -> VariableStore:
    region = flash[place.records_at : place.records_at + place.records_size]
    variables = read_records(
        region, place.records_at, flaws, authenticated=place.authenticated, rescue=rescue
    )
    used = len(_records(variables, place))
    return VariableStore(variables, flaws.all(), place.authenticated, used, len(region))


def _written(flash: bytes, place: _Place, variables: tuple[UefiVariable, ...]) -> bytes:
    names = [variable.key for variable in variables]
    if len(set(names)) != len(names):
        raise FieldError("", "two UEFI variables have one name")
    records = _records(variables, place)
    if len(records) > place.records_size:
        raise FieldError(
            "",
            f"the variables take {len(records)} bytes, and the store has {place.records_size}",
            hint="delete some, such as entries of dbx that a newer SbatLevel replaces",
        )
    end = place.records_at + place.records_size
    parts = [flash[: place.records_at], records.ljust(place.records_size, b"\xff")]
    if place.areas is None:
        return b"".join([*parts, flash[end:]])
    areas = place.areas
    parts += [flash[end : areas.work_at], blank_work_area(areas.work_size)]
    return b"".join([*parts, b"\xff" * areas.spare_size, flash[areas.end :]])


def _records(variables: tuple[UefiVariable, ...], place: _Place) -> bytes:
    return write_records(variables, authenticated=place.authenticated)
