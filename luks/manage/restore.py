"""Putting a backup's keyslots in the place of those that a volume has now.

The key material of the backup must not overwrite what the header on the device
still refers to: until the new header is durable, the old one must open (L10).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from formats.devices.device import read_exactly
from formats.frozen import replace
from luks.errors import HeaderMismatchError, KeyslotsFullError, UnsupportedError
from luks.header.writer import write_header
from luks.keys.enroll import find_space

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from formats.devices.device import BlockDevice
    from luks.model import Area, Header, Keyslot


def restore_luks2(
    device: BlockDevice, old: Header, new: Header, material: Mapping[int, bytes]
) -> Header:
    """Replace a LUKS2 header by one of the same volume and layout, all at once.

    Key material that finds its place taken by other material goes to a free one.

    Args:
        device: Holds ``old``.
        old: As it was read from there.
        new: What the backup says.
        material: Content of the backup's areas, by their offsets there.

    Raises:
        KeyslotsFullError: There is no free place for it.
        UnsupportedError: That of a keyslot of an unknown type would have to move.
    """
    in_use = [slot.area for slot in old.keyslots.values()]
    staying = {
        n: slot
        for n, slot in new.keyslots.items()
        if not _overlaps(slot.area, in_use) or _is_there(device, slot.area, material)
    }
    placed: dict[int, Keyslot] = dict(staying)
    written = {
        slot.area.offset: material[slot.area.offset]
        for slot in staying.values()
        if not _is_there(device, slot.area, material)
    }
    for number, slot in sorted(new.keyslots.items()):
        if number in staying:
            continue
        if slot.kdf is None:
            raise UnsupportedError(
                f"keyslot {number} of the unknown type {slot.type!r} cannot be moved, and its"
                " place is taken",
                feature=f"keyslot type {slot.type}",
            )
        taken = [*in_use, *(other.area for other in placed.values())]
        offset = find_space(new, slot.area.size, taken)
        if offset is None:
            raise KeyslotsFullError(
                "the keyslots area has no room for the backup's key material beside the one in use",
                hint="remove keyslots first that the backup does not need",
            )
        placed[number] = replace(slot, area=replace(slot.area, offset=offset))
        written[offset] = material[slot.area.offset]
    restored = replace(
        new,
        keyslots=MappingProxyType(dict(sorted(placed.items()))),
        seqid=max(old.seqid, new.seqid),
        stale_copy=old.stale_copy,
    )
    return write_header(device, restored, written)


def restore_luks1(
    device: BlockDevice, old: Header, new: Header, material: Mapping[int, bytes]
) -> Header:
    """Replace the keyslots of a LUKS1 header by those of a backup, in up to four steps.

    Keyslots that the volume does not have are added first. Those that differ are removed,
    and then added as the backup has them. What the backup does not have is removed last
    (L113).

    Args:
        device: Holds ``old``.
        old: As it was read from there.
        new: What the backup says, of the same volume.
        material: Content of the backup's areas, by their offsets.

    Raises:
        HeaderMismatchError: The areas of the keyslots lie elsewhere.
    """
    places = [
        (header.source.hash_spec, [(s.material_sector, s.stripes) for s in header.source.keyslots])
        for header in (old, new)
    ]
    if places[0] != places[1]:
        raise HeaderMismatchError("the backup has other keyslots, or at other places [L111]")
    fresh = {n: slot for n, slot in new.keyslots.items() if n not in old.keyslots}
    changed = {
        n: slot
        for n, slot in new.keyslots.items()
        if n in old.keyslots
        and (slot != old.keyslots[n] or not _is_there(device, slot.area, material))
    }
    steps = [{**old.keyslots, **fresh}]
    if changed:
        steps.append({n: slot for n, slot in steps[0].items() if n not in changed})
        steps.append({**steps[0], **changed})
    steps.append(dict(new.keyslots))
    current = old
    for keyslots in steps:
        coming = [slot.area for n, slot in keyslots.items() if n not in current.keyslots]
        if keyslots != dict(current.keyslots):
            wanted = replace(current, keyslots=MappingProxyType(keyslots))
            parts = {area.offset: material[area.offset] for area in coming}
            current = write_header(device, wanted, parts)
    return current


def _is_there(device: BlockDevice, area: Area, material: Mapping[int, bytes]) -> bool:
    return read_exactly(device, area.offset, area.size) == material[area.offset]


def _overlaps(area: Area, others: Iterable[Area]) -> bool:
    return any(area.offset < other.end and other.offset < area.end for other in others)
