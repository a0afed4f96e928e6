"""Writing a header of the other version over one of LUKS1 or LUKS2, in place.

Both versions begin in the first sector, which is written whole or not at all. So the
switch is one write of that sector; everything else that the new header needs is durable
before, and the old header does not need it any more. Two facts make that possible:

- The 80 bytes of a LUKS1 header in the second sector lie in what is padding in LUKS2. The
  checksum covers it, but its content means nothing.
- LUKS1 says for each keyslot where its material is. It can be anywhere: before the switch
  none is used where a LUKS2 header has its copies.

Rules: L200 to L203.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from formats.devices.device import read_exactly
from formats.frozen import replace
from luks.errors import KeyslotsFullError, LuksHeaderError
from luks.header import luks1, luks2
from luks.header.luks2 import PRIMARY, SECONDARY
from luks.header.luks2_binary import BINARY_SIZE, with_padding
from luks.header.validate import validate_luks1
from luks.model import SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import BlockDevice
    from luks.header.luks1 import RawHeader, RawKeyslot
    from luks.header.places import Room
    from luks.model import Header

#: Keyslots of LUKS1 whose offsets are in the first sector of the header.
_FIRST_SECTOR: Final = 6


class Luks1Step(NamedTuple):
    """A change of a LUKS1 header that moves key material.

    Attributes:
        copies: Offsets from which and to which the material is copied first.
        raw: The header afterwards.
        numbers: The new number of each keyslot that changes its number.
    """

    copies: tuple[tuple[int, int], ...]
    raw: RawHeader
    numbers: tuple[tuple[int, int], ...] = ()


def plan_vacating(
    raw: RawHeader, room: Room, duplicate: tuple[int, int] | None = None
) -> list[Luks1Step]:
    """Return steps after which all active keyslots have their material inside a room.

    Each step leaves a valid LUKS1 header at every instant: material moves to a place that
    belongs to no keyslot, or that of an inactive one, which takes the old place in turn.

    Args:
        raw: The header.
        room: Where the material must be.
        duplicate: See `find_duplicate`; it becomes one again.

    Raises:
        KeyslotsFullError: There is no such place.
    """
    steps: list[Luks1Step] = []
    if duplicate is not None:
        raw = _without(raw, duplicate[0])
        steps.append(Luks1Step((), raw, (duplicate,)))
    for number in range(luks1.KEYSLOT_COUNT):
        if raw.keyslots[number].active and not room.fits(_offset(raw.keyslots[number])):
            for step in _moved_into(raw, number, room):
                steps.append(step)
                raw = step.raw
    return steps


def find_duplicate(device: BlockDevice, raw: RawHeader, size: int) -> tuple[int, int] | None:
    """Return the two numbers of a keyslot that a crash left while its number was changed.

    Such a keyslot is there twice, with one salt and one key material.

    Args:
        device: Holds the LUKS1 header.
        raw: That header.
        size: Bytes of material at each place.

    Raises:
        DeviceError: It cannot be read.
    """
    for later in range(_FIRST_SECTOR, luks1.KEYSLOT_COUNT):
        for number in range(_FIRST_SECTOR):
            one, other = raw.keyslots[number], raw.keyslots[later]
            if not (one.active and other.active and one.salt == other.salt):
                continue
            materials = {read_exactly(device, _offset(slot), size) for slot in (one, other)}
            if one.iterations == other.iterations and len(materials) == 1:
                return number, later
    return None


def _without(raw: RawHeader, number: int) -> RawHeader:
    """Return a header in which a keyslot is inactive."""
    keyslots = list(raw.keyslots)
    old = keyslots[number]
    keyslots[number] = replace(old, active=False, iterations=0, salt=bytes(len(old.salt)))
    return replace(raw, keyslots=tuple(keyslots))


def _moved_into(raw: RawHeader, number: int, room: Room) -> Iterator[Luks1Step]:
    """Yield the steps that move the material of one keyslot into a room."""
    here = _offset(raw.keyslots[number])
    place = room.find([_offset(slot) for slot in raw.keyslots])
    if place is not None:
        yield Luks1Step(((here, place),), _with_places(raw, {number: place}))
        return
    unused = [
        other
        for other, slot in enumerate(raw.keyslots)
        if not slot.active and room.fits(_offset(slot))
    ]
    for other in unused:
        if exchangeable(number, other):
            yield _exchange(raw, number, other)
            return
    # The offsets of the unused keyslots are in the other sector, so that the two cannot be
    # exchanged at once. A third keyslot takes the number of the unused one.
    for third in range(_FIRST_SECTOR if unused and number < _FIRST_SECTOR else 0):
        slot = raw.keyslots[third]
        if third != number and slot.active and room.fits(_offset(slot)):
            renumbered = _renumber(raw, third, unused[0])
            yield renumbered
            yield _exchange(renumbered.raw, number, third)
            return
    raise KeyslotsFullError(
        f"there is no free place to which the key material of keyslot {number} could move [L203]",
        hint="remove a keyslot, convert the header, and add the keyslot again",
    )


def exchangeable(one: int, other: int) -> bool:
    """Say whether two keyslots of LUKS1 have their offsets in one sector of the header."""
    return (one < _FIRST_SECTOR) == (other < _FIRST_SECTOR)


def _exchange(raw: RawHeader, active: int, unused: int) -> Luks1Step:
    """Give an active keyslot the place of an unused one, and the other way round."""
    here, there = _offset(raw.keyslots[active]), _offset(raw.keyslots[unused])
    return Luks1Step(((here, there),), _with_places(raw, {active: there, unused: here}))


def _renumber(raw: RawHeader, number: int, unused: int) -> Luks1Step:
    """Let an unused keyslot in the second sector have the content of another one."""
    old, new = raw.keyslots[number], raw.keyslots[unused]
    keyslots = list(raw.keyslots)
    keyslots[unused] = replace(old, material_sector=new.material_sector)
    changed = _without(replace(raw, keyslots=tuple(keyslots)), number)
    return Luks1Step(((_offset(old), _offset(new)),), changed, ((number, unused),))


def plan_return(raw: RawHeader, goals: dict[int, int], room: Room) -> list[Luks1Step]:
    """Return steps that bring key material of LUKS1 to its usual places, as far as possible.

    Args:
        raw: The header, whose places may overlap those goals only that are given up.
        goals: The usual offset of each keyslot.
        room: Where places may be.
    """
    steps: list[Luks1Step] = []
    for number, goal in goals.items():
        slot = raw.keyslots[number]
        if not slot.active or _offset(slot) == goal:
            continue
        others = [_offset(other) for n, other in enumerate(raw.keyslots) if n != number]
        if room.is_free(goal, [*others, _offset(slot)]):
            step = Luks1Step(((_offset(slot), goal),), _with_places(raw, {number: goal}))
        else:
            holder = [n for n, other in enumerate(raw.keyslots) if _offset(other) == goal]
            if not holder or raw.keyslots[holder[0]].active:
                continue
            if not exchangeable(number, holder[0]):
                continue  # as valid where it is
            step = _exchange(raw, number, holder[0])
        steps.append(step)
        raw = step.raw
    return steps


def write_luks1_step(device: BlockDevice, old: RawHeader, step: Luks1Step, size: int) -> None:
    """Copy key material and then change the header, durably.

    If both sectors of the header change, the second one is written first: then what became
    active there and what is still active in the first one both open.

    Args:
        device: Holds the header ``old``.
        old: The header before.
        step: What changes.
        size: Bytes of material at each place.

    Raises:
        DeviceError: A read, write or flush failed: the header is one of the two, or opens
            with the keyslots of both.
    """
    for source, target in step.copies:
        device.write(target, read_exactly(device, source, min(size, device.size - source)))
        device.flush()
    for offset, sector in luks1_sectors(step.raw)[::-1]:
        if sector != dict(luks1_sectors(old))[offset]:
            device.write(offset, sector)
            device.flush()


def luks1_sectors(raw: RawHeader) -> list[tuple[int, bytes]]:
    """Return the two sectors of a LUKS1 header with their offsets.

    Raises:
        LuksHeaderError: It breaks a rule.
    """
    data = luks1.encode(raw).ljust(2 * SECTOR_SIZE, b"\0")
    validate_luks1(luks1.decode(data))
    return [(0, data[:SECTOR_SIZE]), (SECTOR_SIZE, data[SECTOR_SIZE:])]


def encode_switched(header: Header, raw: RawHeader) -> tuple[bytes, bytes]:
    """Return both copies of a LUKS2 header that takes the place of one of LUKS1.

    Args:
        header: The LUKS2 header.
        raw: The LUKS1 header, of which the second sector stays in the primary copy.

    Raises:
        LuksHeaderError: The copies would not be read as they are meant.
    """
    primary, secondary = luks2.encode(header)
    primary = with_padding(primary, luks1_sectors(raw)[1][1])
    for which, copy in ((PRIMARY, primary), (SECONDARY, secondary)):
        if luks2.decode_copy(copy, which, which * header.metadata_size) != header:
            raise LuksHeaderError(
                "the metadata would be read differently than they were given", rule="L90"
            )
    return primary, secondary


def switch_to_luks2(device: BlockDevice, copies: tuple[bytes, bytes]) -> None:
    """Replace a LUKS1 header, none of whose keyslots is used where the copies go.

    Args:
        device: Holds the LUKS1 header.
        copies: From `encode_switched`.

    Raises:
        DeviceError: A write or flush failed: the header is the old or the new one.
    """
    primary, secondary = copies
    device.write(2 * SECTOR_SIZE, primary[2 * SECTOR_SIZE :] + secondary)
    device.flush()
    device.write(0, primary[:SECTOR_SIZE])
    device.flush()


def switch_to_luks1(device: BlockDevice, old: Header, raw: RawHeader) -> None:
    """Replace a LUKS2 header, both of whose copies are sound.

    While the second sector is that of LUKS1 and the first one is not, the secondary copy is
    the header.

    Args:
        device: Holds the LUKS2 header.
        old: That header.
        raw: The LUKS1 header; none of its active keyslots is where the copies are.

    Raises:
        DeviceError: A write or flush failed: the header is the old or the new one.
    """
    for offset, sector in luks1_sectors(raw)[::-1]:
        device.write(offset, sector)
        device.flush()
    device.write(old.metadata_size, bytes(BINARY_SIZE))
    device.flush()


def _with_places(raw: RawHeader, places: dict[int, int]) -> RawHeader:
    return replace(
        raw,
        keyslots=tuple(
            replace(slot, material_sector=places[number] // SECTOR_SIZE)
            if number in places
            else slot
            for number, slot in enumerate(raw.keyslots)
        ),
    )


def _offset(slot: RawKeyslot) -> int:
    return slot.material_sector * SECTOR_SIZE
