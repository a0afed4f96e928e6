"""Rules that tie the parts of a header together: bounds, overlaps, references.

Decoding has checked types; this checks consistency before anything in the header
is used. Reasons to refuse a sound header are in `luks.header.policy`.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from luks.errors import LuksHeaderError
from luks.header.luks2_binary import BINARY_SIZE
from luks.header.luks2_reencrypt_rules import check_reencryption
from luks.model import SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luks.header.luks1 import RawHeader
    from luks.model import Header

#: Largest number of keyslots, and of tokens, in LUKS2.
MAX_OBJECTS: Final = 32
#: Largest size of all keyslot areas, in bytes.
MAX_KEYSLOTS_SIZE: Final = 128 << 20
#: Sector sizes of dm-crypt.
SECTOR_SIZES: Final = (512, 1024, 2048, 4096)
#: Offsets and sizes of keyslot areas are multiples of this in LUKS2.
AREA_ALIGNMENT: Final = 4096

_ENDLESS: Final = 2**64  # largest possible size of a dynamic segment
_LUKS1_HEADER_SECTORS: Final = 2
_LUKS1_MAX_KEY_SIZE: Final = 512


def validate_luks1(raw: RawHeader) -> None:
    """Check a LUKS1 header, inactive keyslots included: they will be used.

    Raises:
        LuksHeaderError: It contradicts itself.
    """
    if not 0 < raw.key_bytes <= _LUKS1_MAX_KEY_SIZE:
        raise LuksHeaderError(f"a volume key cannot have {raw.key_bytes} bytes", rule="L43")
    if raw.mk_digest_iterations == 0:
        raise LuksHeaderError("the digest has no iterations", rule="L43")
    areas = []
    for number, slot in enumerate(raw.keyslots):
        name = f"keyslot {number}"
        if slot.active and (slot.iterations == 0 or slot.stripes == 0):
            raise LuksHeaderError(f"{name} has no iterations or no stripes", rule="L43")
        sectors = raw.area_sectors(slot)
        start, end = slot.material_sector, slot.material_sector + sectors
        if start < _LUKS1_HEADER_SECTORS:
            raise LuksHeaderError(f"{name} overlaps the header", rule="L44")
        if sectors * SECTOR_SIZE > MAX_KEYSLOTS_SIZE or 0 < raw.payload_sector < end:
            raise LuksHeaderError(f"{name} reaches into the payload", rule="L44")
        areas.append((start, end, name))
    _check_disjoint(areas, rule="L44")
    if len({slot.stripes for slot in raw.keyslots}) > 1:
        raise LuksHeaderError("the keyslots have different numbers of stripes", rule="L43")


def validate_luks2(header: Header, *, json_size: int) -> None:
    """Check a LUKS2 header.

    Args:
        header: As decoded.
        json_size: Size of the JSON area, as the JSON text itself says.

    Raises:
        LuksHeaderError: It contradicts itself.
    """
    if json_size != header.metadata_size - BINARY_SIZE:
        raise LuksHeaderError(
            f"json_size is {json_size} in a copy of {header.metadata_size} bytes", rule="L25"
        )
    if header.keyslots_size % AREA_ALIGNMENT or header.keyslots_size > MAX_KEYSLOTS_SIZE:
        raise LuksHeaderError(f"keyslots_size cannot be {header.keyslots_size}", rule="L25")
    for what, numbers in (("keyslot", header.keyslots), ("token", header.tokens)):
        for number in numbers:
            if number >= MAX_OBJECTS:
                raise LuksHeaderError(f"a LUKS2 header cannot have {what} {number}", rule="L26")
    _check_segments(header)
    _check_areas(header)
    _check_references(header)
    check_reencryption(header)


def _check_areas(header: Header) -> None:
    start, end = header.keyslots_offset, header.keyslots_offset + header.keyslots_size
    if 0 < header.data_offset < end:
        raise LuksHeaderError(
            f"the keyslots area ends at byte {end}, after the start of the payload"
            f" at byte {header.data_offset}",
            rule="L25",
        )
    areas = []
    for number, keyslot in header.keyslots.items():
        area, name = keyslot.area, f"keyslot {number}"
        if area.size == 0 or area.offset < start or area.end > end:
            raise LuksHeaderError(
                f"the area of {name}, bytes {area.offset} to {area.end}, is not inside the"
                f" keyslots area, bytes {start} to {end}",
                rule="L27",
            )
        areas.append((area.offset, area.end, name))
    _check_disjoint(areas, rule="L27")


def _check_segments(header: Header) -> None:
    if sorted(header.segments) != list(range(len(header.segments))):
        raise LuksHeaderError("segments are not numbered from 0 without gaps", rule="L28")
    backups = [header.segments[number].is_backup for number in sorted(header.segments)]
    if not header.data_segments or backups != sorted(backups):
        raise LuksHeaderError("the first segments are backups only", rule="L28")
    for number, segment in header.segments.items():
        name = f"segment {number}"
        if segment.offset % SECTOR_SIZE:
            raise LuksHeaderError(f"{name} starts inside a sector", rule="L28")
        if segment.size == 0:
            raise LuksHeaderError(f"{name} is empty", rule="L28")
        if segment.sector_size % SECTOR_SIZE:
            raise LuksHeaderError(f"{name} has sectors of {segment.sector_size} bytes", rule="L28")
        if segment.size is not None and segment.size % segment.sector_size:
            raise LuksHeaderError(f"{name} ends inside a sector", rule="L28")
    *bounded, _ = header.data_segments
    if any(segment.size is None for segment in bounded):
        raise LuksHeaderError("a segment of dynamic size is not the last", rule="L28")
    _check_disjoint(
        (
            (segment.offset, segment.offset + (segment.size or _ENDLESS), f"segment {number}")
            for number, segment in header.segments.items()
            if not segment.is_backup
        ),
        rule="L28",
    )


def _check_references(header: Header) -> None:
    # Count in one pass: hostile JSON can repeat the same numbers very often.
    digests_of_keyslot: Counter[int] = Counter()
    decrypted: set[int] = set()
    for number, digest in header.digests.items():
        keyslots, segments = set(digest.keyslots), set(digest.segments)
        if not header.keyslots.keys() >= keyslots:
            raise LuksHeaderError(f"digest {number} names a missing keyslot", rule="L29")
        if not header.segments.keys() >= segments:
            raise LuksHeaderError(f"digest {number} names a missing segment", rule="L29")
        digests_of_keyslot.update(keyslots)
        decrypted |= segments
    for number, token in header.tokens.items():
        if not header.keyslots.keys() >= set(token.keyslots):
            raise LuksHeaderError(f"token {number} names a missing keyslot", rule="L29")
    for number, keyslot in header.keyslots.items():
        count = digests_of_keyslot[number]
        if keyslot.type == "luks2" and count != 1:
            raise LuksHeaderError(f"keyslot {number} has {count} digests", rule="L29")
    for number, segment in header.segments.items():
        if segment.type == "crypt" and number not in decrypted:
            raise LuksHeaderError(f"segment {number} has no digest", rule="L29")


def _check_disjoint(ranges: Iterable[tuple[int, int, str]], *, rule: str) -> None:
    """Check that ranges, given as start, end and name, do not overlap."""
    for (_, end, name), (start, _, other) in pairwise(sorted(ranges)):
        if start < end:
            raise LuksHeaderError(f"{name} and {other} overlap", rule=rule)
