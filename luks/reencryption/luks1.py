"""A re-encryption of a LUKS1 volume: LUKS2's, with a journal beside the image (L210).

LUKS1 has one key and no place for records, so its header cannot describe a payload of
which a part has the old key and a part the new one. The *journal* can: it is a detached
LUKS2 header for the same payload, with the keyslots of the LUKS1 header and new ones, and
the whole of LUKS2's scheme. What the LUKS2 engine guarantees holds for this payload, too.

1. The journal is made, with the record of the re-encryption, and gets its name, durably.
2. The LUKS1 header is *marked*: other first bytes say that only the journal counts. Before,
   nothing is moved; from then on no program takes it for a volume.
3. The payload is moved, by LUKS2's steps.
4. The LUKS1 header is made from the journal, its first sector last, and the journal removed.
   Until then the journal is complete, so that this can be repeated.

A keyslot of the LUKS1 header has the same number in the journal. A token for each says which
one, also for the keyslot that takes its place: the engine hands tokens on. The old key has
the digest 0, so that a journal in which it is left alone was taken back.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from formats.devices.device import SliceDevice, read_exactly
from formats.devices.new_file import synchronise_directory
from formats.errors import device_error
from formats.frozen import Frozen, replace
from luks.errors import FormatError, HeaderMismatchError, LuksHeaderError
from luks.header import luks1
from luks.header.detection import MARKED_MAGIC
from luks.header.layout import area_size
from luks.header.load import read_header
from luks.header.version_switch import luks1_sectors
from luks.header.versions import COPIES_SIZE, as_luks1, check_luks1
from luks.header.writer import erase_unused, wipe_header
from luks.model import SECTOR_SIZE, Header, Token
from luks.reencryption.interface import Reencryption

if TYPE_CHECKING:
    from collections.abc import Mapping

    from formats.devices.device import BlockDevice
    from luks.header.luks1 import RawHeader
    from luks.reencryption.interface import ReencryptionStatus
    from luks.reencryption.luks2 import Luks2Reencryption

#: Type of the tokens in a journal.
TOKEN_TYPE: Final = "blobstore-luks1-keyslot"  # noqa: S105  not that kind of token
#: Bytes of a journal, at most: room for checksums of 64 MiB and more.
_JOURNAL_SIZE: Final = 8 << 20
#: Of these, bytes that are wanted for the record of the re-encryption.
_RECORD_SIZE: Final = 512 << 10

#: Number of the old key's digest in a journal.
_OLD_DIGEST: Final = 0


class Luks1Places(Frozen):
    """Where a LUKS1 volume and the journal of its re-encryption are.

    Attributes:
        image: Holds the payload.
        header: Holds the LUKS1 header; the same device if that is attached.
        journal: Holds the journal.
        journal_path: Its path, if it is a file that is removed at the end.
    """

    image: BlockDevice
    header: BlockDevice
    journal: BlockDevice
    journal_path: str | os.PathLike[str] | None = None


def read_luks1(device: BlockDevice) -> tuple[Header, bool]:
    """Return a LUKS1 header, and whether it is marked.

    Raises:
        LuksHeaderError: There is none, or it is damaged.
    """
    data = read_exactly(device, 0, min(luks1.HEADER_SIZE, device.size))
    is_marked = data.startswith(MARKED_MAGIC)
    if is_marked:
        data = luks1.MAGIC + data[len(MARKED_MAGIC) :]
    return luks1.to_model(luks1.decode(data)), is_marked


def mark(device: BlockDevice, *, marked: bool = True) -> None:
    """Durably mark a LUKS1 header, or take the mark away again; it is one sector.

    Raises:
        DeviceError: A read, write or flush failed; do it again.
    """
    magic = MARKED_MAGIC if marked else luks1.MAGIC
    sector = read_exactly(device, 0, SECTOR_SIZE)
    device.write(0, magic + sector[len(magic) :])
    device.flush()


def journal_for(header: Header, new_size: int) -> Header:
    """Return the header of a new journal: the LUKS2 form of a LUKS1 header, for the same payload.

    If there is room for all keyslots and the record before the payload, cryptsetup can use the
    journal with the image. If not, the payload begins at byte 0 of the journal's payload.

    Args:
        header: The LUKS1 header.
        new_size: Bytes of a keyslot area of the new key.
    """
    raw: RawHeader = header.source
    size = area_size(raw.key_bytes, raw.keyslots[0].stripes)
    wanted = COPIES_SIZE + len(header.keyslots) * (size + new_size) + _RECORD_SIZE
    offset, end = header.data_offset, max(_JOURNAL_SIZE, wanted)
    if offset >= wanted:
        end = min(offset, end)
    else:
        offset = 0
    keyslots, tokens = {}, {}
    for place, (number, keyslot) in enumerate(header.keyslots.items()):
        area = replace(keyslot.area, offset=COPIES_SIZE + place * size, size=size)
        keyslots[number] = replace(keyslot, type="luks2", area=area)
        body: Mapping[str, Any] = {
            "type": TOKEN_TYPE,
            "keyslots": [str(number)],
            "number": number,
        }
        tokens[number] = Token(TOKEN_TYPE, (number,), body)
    return Header(
        version=2,
        uuid=header.uuid,
        keyslots=MappingProxyType(keyslots),
        digests=MappingProxyType({_OLD_DIGEST: header.digests[0]}),
        segments=MappingProxyType({0: replace(header.segments[0], offset=offset)}),
        tokens=MappingProxyType(tokens),
        metadata_size=COPIES_SIZE // 2,
        keyslots_offset=COPIES_SIZE,
        keyslots_size=(end - COPIES_SIZE) // luks1.AREA_ALIGNMENT * luks1.AREA_ALIGNMENT,
    )


def journal_material(device: BlockDevice, header: Header, journal: Header) -> dict[int, bytes]:
    """Return the key material for a new journal, by its offset there."""
    return {
        journal.keyslots[number].area.offset: read_exactly(
            device, keyslot.area.offset, keyslot.area.size
        )
        for number, keyslot in header.keyslots.items()
    }


def payload_of(image: BlockDevice, header: Header, journal: Header) -> BlockDevice:
    """Return the device on which the segments of a journal count."""
    start = header.data_offset - journal.segments[0].offset
    return image if start == 0 else SliceDevice(image, start, image.size - start)


def check_belongs(header: Header, journal: Header) -> None:
    """Check that a journal is that of a LUKS1 header.

    Raises:
        HeaderMismatchError: It is not.
    """
    if header.uuid != journal.uuid or not _numbers(journal):
        raise HeaderMismatchError(
            "the journal belongs to another volume, or is the header of one [L213]",
            hint="name the journal of this image",
        )
    start = journal.data_offset
    if start not in (0, header.data_offset):
        raise HeaderMismatchError("the journal is for another payload [L213]")


def is_of_this_state(header: Header, journal: Header) -> bool:
    """Say whether a journal was made for the key that a LUKS1 header has, or gave it that key.

    Args:
        header: The LUKS1 header, not marked.
        journal: One that belongs to the volume.
    """
    ours, digests = header.digests[0], journal.digests
    # A header that is not marked has the old key, or nothing is left to be moved.
    theirs = digests.get(_OLD_DIGEST) or next(iter(digests.values()))
    return theirs.salt == ours.salt and theirs.value[: len(ours.value)] == ours.value


def is_taken_back(journal: Header) -> bool:
    """Say whether a journal in which nothing is in progress has the old key."""
    return _OLD_DIGEST in journal.digests


def luks1_header(journal: Header, header: Header) -> Header:
    """Return the LUKS1 header that a journal describes, when nothing is left to be moved.

    Args:
        journal: The journal.
        header: The LUKS1 header before.

    Raises:
        UnsupportedError: LUKS1 cannot store it.
    """
    number_of = _numbers(journal)
    keyslots = {number_of[n]: keyslot for n, keyslot in journal.keyslots.items()}
    (digest,) = journal.digests.values()
    final = replace(
        journal,
        keyslots=MappingProxyType(dict(sorted(keyslots.items()))),
        digests=MappingProxyType({0: replace(digest, keyslots=tuple(sorted(keyslots)))}),
        segments=MappingProxyType({0: replace(journal.segments[0], offset=header.data_offset)}),
        tokens=MappingProxyType({}),
    )
    check_luks1(final, force=True)
    return as_luks1(final, usual_places(next(iter(keyslots.values())).key_size))


def usual_places(key_size: int) -> dict[int, int]:
    """Return where LUKS1 has the key material of its eight keyslots."""
    size = area_size(key_size)
    return {n: luks1.AREA_ALIGNMENT + n * size for n in range(luks1.KEYSLOT_COUNT)}


def finish(places: Luks1Places) -> None:
    """Write the LUKS1 header that the journal describes, and remove the journal.

    Raises:
        DeviceError: A read, write or flush failed; do it again.
    """
    old, is_marked = read_luks1(places.header)
    if is_marked:
        journal = read_header(places.journal)
        new = luks1_header(journal, old)
        number_of = _numbers(journal)
        require_size(places.header, new.keyslots_offset + new.keyslots_size)
        for number, keyslot in journal.keyslots.items():
            area = new.keyslots[number_of[number]].area
            material = read_exactly(places.journal, keyslot.area.offset, area.size)
            places.header.write(area.offset, material)
        # All else there is key material of the old key.
        erase_unused(places.header, new, new.data_offset)
        for offset, sector in luks1_sectors(new.source)[::-1]:
            places.header.write(offset, sector)
            places.header.flush()
    remove_journal(places)


def remove_journal(places: Luks1Places) -> None:
    """Durably remove a journal that is not needed any more; repeating it is harmless."""
    if places.journal_path is None:
        try:
            wipe_header(places.journal, read_header(places.journal))
        except FormatError:
            # A part of it is wiped: without a header, key material says nothing. A header
            # that comes back after a failed flush is that of an ended re-encryption.
            places.journal.flush()
        return
    path = Path(os.path.realpath(places.journal_path))
    try:
        path.unlink(missing_ok=True)
        synchronise_directory(path.parent)
    except OSError as error:
        raise device_error(error, f"cannot remove {path}") from error


def require_size(device: BlockDevice, size: int) -> None:
    """Durably enlarge a detached LUKS1 header whose new keyslots need more room.

    Raises:
        UnsupportedError, DeviceError: It cannot be enlarged.
    """
    if device.size < size:
        device.resize(size)
        device.flush()


def _numbers(journal: Header) -> dict[int, int]:
    """Return the number in LUKS1 of each keyslot of a journal."""
    numbers = {}
    for token in journal.tokens.values():
        number = token.body.get("number")
        if token.type == TOKEN_TYPE and isinstance(number, int):
            numbers.update(dict.fromkeys(token.keyslots, number))
    wanted = set(range(luks1.KEYSLOT_COUNT))
    if not set(numbers.values()) <= wanted:
        raise LuksHeaderError("the journal has impossible numbers of keyslots", rule="L213")
    return numbers


class Luks1Reencryption(Reencryption):
    """A `Reencryption` of a LUKS1 volume: steps of LUKS2, and one that ends it."""

    def __init__(self, running: Luks2Reencryption, places: Luks1Places) -> None:
        """Continue a re-encryption with the journal; the LUKS1 header is marked already."""
        self._running = running
        self._places = places
        self._is_final = False
        self._is_taken_back = False

    @property
    def status(self) -> ReencryptionStatus:
        return self._running.status

    @property
    def volume(self) -> BlockDevice:
        return self._running.volume

    def step(self) -> bool:
        moved = self._running.step()
        with self._running.lock:
            if self._is_final or not self._running.status.is_finished:
                return moved
            # It is in doubt until memory knows of it: then it is done again.
            finish(self._places)
            self._is_final = True
        return True

    def take_back(self) -> None:
        """Make the LUKS1 header valid again, if nothing has been moved, and remove the journal.

        Raises:
            UnfinishedReencryptionError: Something has been moved.
            DeviceError: A read, write or flush failed; do it again.
        """
        if not self._is_taken_back:
            self._running.take_back()
            self._is_taken_back = True
        with self._running.lock:
            mark(self._places.header, marked=False)
            remove_journal(self._places)
            self._is_final = True

    def close(self) -> None:
        self._running.close()
