"""The rules for a header of a volume with a LUKS2 re-encryption in progress.

A keyslot of type ``reencrypt`` holds no key, but the record of the re-encryption: its
mode and direction, and how it survives a crash; two backup segments describe the payload
before and after it (L30). `reencrypt_record` returns that record; nothing in it is
authentic before `luks.keys.reencryption` has verified its digest. This module does not
continue a re-encryption.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from formats.frozen import Frozen
from luks.errors import LuksHeaderError, UnsupportedError
from luks.header.luks2_json import Node

if TYPE_CHECKING:
    from luks.model import Area, Header, Segment

#: Requirements of a re-encryption in progress, and the version of its metadata.
REENCRYPT_VERSIONS: Final = {
    "online-reencrypt": 1,
    "online-reencrypt-v2": 2,
    "online-reencrypt-v3": 3,
}
REENCRYPT_REQUIREMENTS: Final = frozenset(REENCRYPT_VERSIONS)
#: That of a decryption which also moves the payload to the start of its device.
MOVING_DECRYPTION: Final = "online-reencrypt-v3"
#: The type of the keyslot that records one.
REENCRYPT: Final = "reencrypt"

#: All requirements that mean one, known or not.
_REQUIREMENT: Final = re.compile("online-reencrypt(-v[0-9]+)?")

_MODES: Final = ("reencrypt", "encrypt", "decrypt")
_DIRECTIONS: Final = ("forward", "backward")
# How the part that is being rewritten is protected, and the members that each way
# needs. As in cryptsetup 2.6, other ways may appear and are not judged here.
_RESILIENCE: Final = {
    "checksum": ("checksum",),
    "datashift": ("shift",),
    "datashift-journal": ("shift",),
    "datashift-checksum": ("checksum",),
}
#: Flags of the segments that describe the payload before and after, and of the piece that
#: data shift moves first.
BACKUP_PREVIOUS: Final = "backup-previous"
BACKUP_FINAL: Final = "backup-final"
BACKUP_MOVED: Final = "backup-moved-segment"
_SECTOR_SIZE: Final = 512
_MAX_UINT32: Final = 2**32 - 1


class ReencryptRecord(Frozen):
    """What a header says about the re-encryption of its volume.

    Attributes:
        keyslot: Number of the keyslot that records it.
        version: Of the metadata, from the requirement; version 1 has no digest.
        mode: ``"reencrypt"``, ``"encrypt"`` or ``"decrypt"``.
        direction: ``"forward"`` or ``"backward"``.
        resilience: How the segment that is being moved survives a crash, such as
            ``"checksum"``; unknown ones occur.
        area: Where checksums or the copy of that segment lie; its cipher is None.
        hash_name: Hash of the checksums, or "".
        sector_size: Bytes that each checksum covers, or 0.
        shift_size: Bytes by which the payload is moved, or 0.
    """

    keyslot: int
    version: int
    mode: str
    direction: str
    resilience: str
    area: Area
    hash_name: str = ""
    sector_size: int = 0
    shift_size: int = 0


def reencrypt_record(header: Header) -> ReencryptRecord | None:
    """Return the record of the re-encryption in progress, or None if there is none.

    Args:
        header: As it was loaded.

    Raises:
        LuksHeaderError: The shift of a ``datashift-checksum`` is not a number, or checksums
            cover more than any sector has.
    """
    required = [word for word in header.requirements if word in REENCRYPT_VERSIONS]
    if not required:
        return None
    number = next(n for n, keyslot in header.keyslots.items() if keyslot.type == REENCRYPT)
    node = Node(header.source.root["keyslots"][str(number)], f"keyslot {number}")
    area = node.child("area")
    resilience = area.text("type")
    needs = _RESILIENCE.get(resilience, ())
    return ReencryptRecord(
        keyslot=number,
        version=REENCRYPT_VERSIONS[required[0]],
        mode=node.text("mode"),
        direction=node.text("direction"),
        resilience=resilience,
        area=header.keyslots[number].area,
        hash_name=area.text("hash") if "checksum" in needs else "",
        sector_size=area.integer("sector_size", 0, _MAX_UINT32) if "checksum" in needs else 0,
        shift_size=area.uint64("shift_size") if resilience.startswith("datashift") else 0,
    )


def check_reencrypt_keyslot(node: Node) -> None:
    """Check the members of a ``reencrypt`` keyslot.

    Raises:
        LuksHeaderError: One is missing or impossible.
    """
    for name, words in (("mode", _MODES), ("direction", _DIRECTIONS)):
        if node.text(name) not in words:
            raise LuksHeaderError(f"{node.place}: {name!r} is not one of {words}", rule="L30")
    area = node.child("area")
    needs = _RESILIENCE.get(area.text("type"), ())
    if "checksum" in needs:
        area.text("hash")
        sector_size = area.integer("sector_size", _SECTOR_SIZE)
        if sector_size & (sector_size - 1):
            raise LuksHeaderError(f"{area.place}: 'sector_size' is not a power of two", rule="L30")
    if "shift" in needs:
        shift = area.uint64("shift_size")
        if not shift or shift % _SECTOR_SIZE:
            raise LuksHeaderError(
                f"{area.place}: 'shift_size' is not a multiple of the sector size", rule="L30"
            )


def check_reencryption(header: Header) -> None:
    """Check that keyslot, requirement and segments of a re-encryption are consistent.

    Of a re-encryption of an unknown version only the keyslot is checked (L186).

    Raises:
        LuksHeaderError: They contradict each other.
    """
    required = [word for word in header.requirements if _REQUIREMENT.fullmatch(word)]
    keyslots = [slot for slot in header.keyslots.values() if slot.type == REENCRYPT]
    if len(required) > 1 or len(keyslots) > 1:
        raise LuksHeaderError("there is more than one re-encryption", rule="L30")
    if keyslots and not required:
        raise LuksHeaderError("a re-encryption lacks its requirement", rule="L30")
    if any(slot.key_size != 1 for slot in keyslots):
        raise LuksHeaderError("a re-encryption keyslot has a key", rule="L30")
    if REENCRYPT_REQUIREMENTS.isdisjoint(required):
        return
    if not keyslots:
        raise LuksHeaderError("a re-encryption lacks its keyslot", rule="L30")
    ends = [_backup(header, flag)[1] for flag in (BACKUP_PREVIOUS, BACKUP_FINAL)]
    for segment in header.data_segments:
        if _kind(segment) not in {_kind(end) for end in ends}:
            raise LuksHeaderError(
                "a segment differs from both its old and its new form in the re-encryption",
                rule="L30",
            )


def check_layout(header: Header) -> None:
    """Check that each segment of a payload is a part of what it was, or of what it becomes.

    Nothing else confirms them: the digest of a re-encryption covers only the backup
    segments. Loading does not require it, because cryptsetup dumps such a header (L185).

    Args:
        header: As it was loaded; its volume is in the middle of a re-encryption.

    Raises:
        LuksHeaderError: One lies elsewhere, or has another key or IV.
        UnsupportedError: The backup segments have an ``iv_tweak``.
    """
    digest_of = header.segment_digests
    old, new = (_backup(header, flag) for flag in (BACKUP_PREVIOUS, BACKUP_FINAL))
    for number, whole in (old, new):
        if whole.iv_tweak:
            raise UnsupportedError(
                f"segment {number} of the re-encryption has the iv_tweak {whole.iv_tweak}, which"
                " cryptsetup ignores when it re-encrypts [L185]",
                feature="re-encryption with iv_tweak",
            )
    record, moved = reencrypt_record(header), header.flagged(BACKUP_MOVED)
    # What has been moved lies at one end of the payload, the rest at the other.
    wholes = [new, old] if record is not None and record.direction == "forward" else [old, new]
    position = 0
    for number, segment in sorted(header.segments.items()):
        if segment.is_backup:
            break
        places = [(n, whole, whole.offset + position) for n, whole in wholes]
        if moved is not None and position == 0:
            whole = header.segments[moved]
            if segment.size is not None and segment.size <= (whole.size or 0):
                places.append((moved, whole, whole.offset))
        fits = [
            n
            for n, whole, offset in places
            if _kind(segment) == _kind(whole)
            and segment.offset == offset
            # cryptsetup resumes one without iv_tweak as well: it computes the IVs itself.
            and segment.iv_tweak in {0, position // _SECTOR_SIZE}
            and digest_of.get(number) == digest_of.get(n)
        ]
        if not fits:
            raise LuksHeaderError(
                f"segment {number} is not at its place in the re-encryption: it has the byte"
                f" {position} of the payload, and starts at byte {segment.offset}",
                rule="L185",
            )
        if wholes[-1][0] in fits and wholes[0][0] not in fits:
            wholes = wholes[-1:]
        position += segment.size or 0


def _backup(header: Header, flag: str) -> tuple[int, Segment]:
    number = header.flagged(flag)
    if number is None:
        raise LuksHeaderError(f"a re-encryption lacks its segment {flag!r}", rule="L30")
    return number, header.segments[number]


def _kind(segment: Segment) -> tuple[str, str | None, int]:
    """Return the properties of a segment that a re-encryption changes, except its key."""
    return segment.type, segment.cipher, segment.sector_size
