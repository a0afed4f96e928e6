"""LUKS1 to LUKS2 and back, in place: the payload stays, and so do all passphrases.

Whatever happens, the image has a header of one of the two versions that opens with every
passphrase. To begin again after a crash is to call `convert_header` again (L200 to L206).
"""

from __future__ import annotations

from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from formats.devices.device import read_exactly
from formats.errors import ArgumentError
from formats.frozen import replace
from luks.errors import KeyslotsFullError, TruncatedImageError, UnsupportedError
from luks.header import luks1
from luks.header.detection import secondary_offsets, uuid_at
from luks.header.layout import area_size
from luks.header.load import check_areas, opened_for_header, read_header
from luks.header.luks2_binary import BINARY_SIZE
from luks.header.places import Move, Room, plan_moves
from luks.header.validate import AREA_ALIGNMENT, MAX_KEYSLOTS_SIZE
from luks.header.version_switch import (
    encode_switched,
    exchangeable,
    find_duplicate,
    luks1_sectors,
    plan_return,
    plan_vacating,
    switch_to_luks1,
    switch_to_luks2,
    write_luks1_step,
)
from luks.header.versions import COPIES_SIZE, as_luks1, as_luks2, check_luks1, keyslots_size
from luks.header.writer import erase_unused, repair_header, write_header
from luks.model import SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from formats.devices.device import BlockDevice
    from luks.header.detection import Place
    from luks.header.luks1 import RawHeader
    from luks.model import Header

#: Where the first keyslot area of LUKS1 begins, as programs make it.
_LUKS1_START: Final = luks1.AREA_ALIGNMENT


def convert_header(path_or_device: Place, version: int, *, force: bool = False) -> Header:
    """Replace a LUKS1 header by one of LUKS2, or the other way round, in place.

    The payload is not touched, and may be in use. Keyslots keep their numbers and
    passphrases. Needs no secret. A crash leaves a header of one version or the other, which
    opens with all passphrases; after it, a keyslot may have another number if seven were
    active. If the header has the version already, only the remains of a crash are removed.

    Args:
        path_or_device: Image file, block device, or detached header, which may grow.
        version: 1 or 2.
        force: Let tokens, labels, flags and priorities be lost, for which LUKS1 has no place.

    Returns:
        The header as it is then.

    Raises:
        UnsupportedError: LUKS1 cannot store the header, or there is no room before the payload.
        PolicyError: Something would be lost.
        KeyslotsFullError: All eight keyslots are active, so that no key material can move.
        TruncatedImageError: The image ends inside the keyslots area.
        StorageError: As `luks.edit`.
    """
    if version not in (1, 2):
        raise ArgumentError(f"version must be 1 or 2, not {version}")
    with opened_for_header(path_or_device) as device:
        header = read_header(device)
        check_areas(device, header)
        if header.version == version:
            return _without_remains(device, header)
        if version == luks1.VERSION:
            return _to_luks1(device, header, force=force)
        return _to_luks2(device, header)


def _to_luks2(device: BlockDevice, header: Header) -> Header:
    raw: RawHeader = header.source
    material = _material_size(raw)
    size = area_size(raw.key_bytes, raw.keyslots[0].stripes)
    space = keyslots_size(header, size)
    room = Room(COPIES_SIZE, COPIES_SIZE + space, size)
    if space < size:
        raise UnsupportedError(
            f"the payload at byte {header.data_offset} leaves no room for a LUKS2 header [L202]",
            feature="converting this layout",
        )
    if not _are_apart(raw, size):
        room = room._replace(size=material)  # packed more tightly than usual
    _require_size(device, room.end)
    steps = plan_vacating(raw, room, find_duplicate(device, raw, material))
    numbers = {new: old for step in steps for old, new in step.numbers}
    vacated = steps[-1].raw if steps else raw
    converted = as_luks2(luks1.to_model(vacated), numbers, area_size=room.size, area_sizes=space)
    copies = encode_switched(converted, vacated)  # before anything is written
    for step in steps:
        write_luks1_step(device, raw, step, material)
        raw = step.raw
    switch_to_luks2(device, copies)
    return _arrange(device, read_header(device), room)


def _arrange(device: BlockDevice, header: Header, room: Room) -> Header:
    """Give keyslots of LUKS2 the places that cryptsetup gives them, if there is a way."""
    places = {number: slot.area.offset for number, slot in header.keyslots.items()}
    usual = {n: room.start + n * room.size for n in range(luks1.KEYSLOT_COUNT)}
    spare = [place for n, place in usual.items() if n not in places and room.fits(place)]
    goals = {}
    for number, place in places.items():
        goals[number] = usual[number]
        if not room.fits(usual[number]):
            goals[number] = spare.pop(0) if spare else place
    moves = plan_moves(places, goals, room) or []
    # Even without a move, this zeroes what is left of LUKS1 in the padding.
    return _move(device, header, moves)


def _move(device: BlockDevice, header: Header, moves: list[Move]) -> Header:
    """Move key material of LUKS2, in as few transactions as possible."""
    rest = list(moves)
    while True:
        keyslots = dict(header.keyslots)
        material = {}
        while rest:
            number, target = rest[0]
            area = replace(keyslots[number].area, offset=target)
            if keyslots[number] != header.keyslots[number]:
                break  # it moves twice: its material is not there yet
            if any(
                area.offset < slot.area.end and slot.area.offset < area.end
                for slot in header.keyslots.values()
            ):
                break
            material[target] = read_exactly(device, header.keyslots[number].area.offset, area.size)
            keyslots[number] = replace(keyslots[number], area=area)
            rest.pop(0)
        new = replace(header, keyslots=MappingProxyType(keyslots))
        header = write_header(device, new, material)
        if not rest:
            return header


def _to_luks1(device: BlockDevice, header: Header, *, force: bool) -> Header:
    check_luks1(header, force=force)
    some = next(iter(header.keyslots.values()))
    size = area_size(some.key_size, some.stripes)
    header = _with_all_space(device, header)
    end = header.keyslots_offset + header.keyslots_size
    usual = _usual_places(size)
    if max(usual.values()) + size > (header.data_offset or device.size):
        raise UnsupportedError(
            f"the payload at byte {header.data_offset} leaves no room for eight keyslots [L204]",
            feature="LUKS1",
        )
    room = Room(header.keyslots_offset, end, size)
    places = {number: slot.area.offset for number, slot in header.keyslots.items()}
    goals = _outside_copies(header, usual, room)
    moves = None if goals is None else plan_moves(places, goals, room)
    if (goals is None or moves is None) and set(places.values()) <= set(usual.values()):
        goals, moves = places, []  # some keyslots have the places of others
    if goals is None or moves is None:
        raise _full()
    raw: RawHeader = as_luks1(header, _all_places(goals, usual)).source
    luks1_sectors(raw)  # check it before anything is written
    header = _move(device, header, moves) if moves else repair_header(device, header)
    switch_to_luks1(device, header, raw)
    return _settle(device, read_header(device), end)


def _with_all_space(device: BlockDevice, header: Header) -> Header:
    """Let the keyslots area of LUKS2 reach as far as LUKS1 will use it: up to the payload."""
    space = min(header.data_offset, device.size) - header.keyslots_offset
    space = min(space - space % AREA_ALIGNMENT, MAX_KEYSLOTS_SIZE)
    return replace(header, keyslots_size=max(header.keyslots_size, space))


def _settle(device: BlockDevice, header: Header, end: int) -> Header:
    """Give keyslots of LUKS1 their usual places, and erase what LUKS2 left before ``end``."""
    raw: RawHeader = header.source
    size = area_size(raw.key_bytes, raw.keyslots[0].stripes)
    end = max(end, header.data_offset)
    for step in plan_return(raw, _usual_places(size), Room(_LUKS1_START, end, size)):
        write_luks1_step(device, raw, step, _material_size(raw))
        raw = step.raw
    settled = read_header(device)
    erase_unused(device, settled, end)
    return settled


def _usual_places(size: int) -> dict[int, int]:
    return {number: _LUKS1_START + number * size for number in range(luks1.KEYSLOT_COUNT)}


def _full() -> KeyslotsFullError:
    return KeyslotsFullError(
        "there is no free place to which the key material could move [L203]",
        hint="remove a keyslot, convert the header, and add the keyslot again",
    )


def _outside_copies(header: Header, usual: Mapping[int, int], room: Room) -> dict[int, int] | None:
    """Return places for the active keyslots of LUKS1 that are not where the copies are.

    That is the usual place, else one that belongs to no keyslot, else that of an inactive one,
    if possible one with which LUKS1 can exchange it later (`plan_return`).
    """
    goals = {number: usual[number] for number in header.keyslots if room.fits(usual[number])}
    unused = [number for number in usual if number not in header.keyslots]
    for number in header.keyslots:
        if number in goals:
            continue
        place = room.find((*goals.values(), *usual.values()))
        if place is None:
            free = [n for n in unused if room.is_free(usual[n], goals.values())]
            if not free:
                return None
            place = usual[min(free, key=lambda n: not exchangeable(n, number))]
        goals[number] = place
    return goals


def _all_places(goals: Mapping[int, int], usual: Mapping[int, int]) -> dict[int, int]:
    """Return a place for each keyslot of LUKS1: its own, or one that an active one has left."""
    places = dict(goals)
    left = [number for number in usual if usual[number] not in goals.values()]
    inactive = [number for number in usual if number not in goals]
    for number in sorted(inactive, key=lambda number: number not in left):
        at = number if number in left else left[0]
        left.remove(at)
        places[number] = usual[at]
    return places


def _without_remains(device: BlockDevice, header: Header) -> Header:
    """Make a header sound that a crash left half converted (L206).

    That is an old copy in LUKS2, and in LUKS1 a secondary copy of LUKS2 beside it.
    """
    if header.version != luks1.VERSION:
        return repair_header(device, header)
    for offset in secondary_offsets(device):
        copy = range(offset, offset + BINARY_SIZE)
        in_use = any(
            slot.area.offset < copy.stop and copy.start < slot.area.end
            for slot in header.keyslots.values()
        )
        beyond = 0 < header.data_offset < copy.stop
        if not in_use and not beyond and header.uuid == uuid_at(device, offset):
            header = _settle(device, header, copy.stop)
    return header


def _are_apart(raw: RawHeader, size: int) -> bool:
    """Say whether all keyslots of LUKS1 have room for areas of ``size`` bytes."""
    offsets = sorted(slot.material_sector * SECTOR_SIZE for slot in raw.keyslots)
    return all(there - here >= size for here, there in pairwise(offsets))


def _material_size(raw: RawHeader) -> int:
    return raw.area_sectors(raw.keyslots[0]) * SECTOR_SIZE


def _require_size(device: BlockDevice, size: int) -> None:
    """Enlarge a file that ends before the keyslots area does, as a detached header may."""
    if device.size >= size:
        return
    try:
        device.resize(size)
    except UnsupportedError as error:
        raise TruncatedImageError(
            f"a LUKS2 header needs {size} bytes, but the device has only {device.size}",
            rule="L202",
            hint="enlarge it",
        ) from error
    device.flush()
