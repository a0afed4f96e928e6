"""How the encryption of a plain image begins, in place (L165, L166)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from formats.devices.device import MemoryDevice
from formats.errors import ArgumentError
from formats.frozen import replace
from luks.errors import (
    DeviceFullError,
    LuksExistsError,
    UnfinishedReencryptionError,
    UnsupportedError,
)
from luks.header.detection import is_luks
from luks.header.load import read_header
from luks.header.luks2_binary import VERSION as LUKS2
from luks.header.writer import create_header
from luks.keys.keyslots import VolumeKey
from luks.keys.reencryption import VolumeKeys
from luks.model import SECTOR_SIZE, Segment
from luks.payload.creation import check_key, enrol, new_uuid, new_volume_key
from luks.reencryption.headers import KeyDigests
from luks.reencryption.luks2 import Luks2Reencryption
from luks.reencryption.placing import (
    BEGUN,
    MARKER_SIZE,
    PLACED,
    STAGED,
    Marker,
    copy_first_bytes,
    place_header,
    read_marker,
    write_marker,
)
from luks.reencryption.plan import ForwardPlan, Progress, ShiftedEncryption
from luks.reencryption.record import Intent, record_of, with_proof, with_record

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from luks.model import Header
    from luks.payload.options import FormatOptions
    from luks.reencryption.interface import ReencryptionOptions
    from luks.reencryption.luks2 import Places
    from luks.secret.secrets import Secret

_DEFAULT_SECTOR: Final = 4096


def begin_detached(
    places: Places,
    secret: bytes | Secret,
    made: FormatOptions,
    options: ReencryptionOptions,
) -> Luks2Reencryption:
    """Begin to encrypt an image whose header goes to a device of its own.

    Args:
        places: The image, and the device for the header, which is blank.
        secret: Opens the volume.
        made: How the volume is made, with a sector size.
        options: Resilience and so on.
    """
    size = _check_plain(places.image)
    blank = made.lay_out(new_uuid(made.random), detached=True)
    if blank.data_offset:
        raise ArgumentError("the payload of an image that is encrypted in place begins at byte 0")
    if size % blank.sector_size:
        raise ArgumentError(
            f"the image of {size} bytes is not a whole number of sectors of {blank.sector_size}"
            " bytes [L155]"
        )
    old, new = Segment("linear", 0, None), blank.segments[0]
    with new_volume_key(made) as key:
        check_key(key, made.cipher)
        header, material = enrol(blank, made, secret, key)
        header = with_record(header, Intent("encrypt", "forward", blank.sector_size, size), options)
        plan = ForwardPlan(record_of(header), old, new, size, False)
        keys = VolumeKeys({0: VolumeKey(key, 0)}).copy()
    digests = KeyDigests(None, 0)
    header = with_proof(header, plan, keys, digests, options)
    written = create_header(places.header, header, material, made.random)
    return Luks2Reencryption(
        places,
        written,
        plan,
        Progress(0),
        keys,
        digests,
        options,
    )


def begin_attached(
    places: Places,
    secret: bytes | Secret,
    made: FormatOptions,
    options: ReencryptionOptions,
) -> Luks2Reencryption:
    """Begin to encrypt an image whose header takes the place of its first bytes.

    Args:
        places: The image.
        secret: Opens the volume.
        made: How the volume is made, with a sector size.
        options: Data shift, and whether the image grows.
    """
    image = places.image
    if options.data_shift is not None:
        made = replace(made, data_offset=options.data_shift)
    blank = made.lay_out(new_uuid(made.random), detached=False)
    shift = blank.data_offset
    room = 2 * shift + MARKER_SIZE
    plain_size = _check_plain(image)
    marker = read_marker(image)
    if marker is not None and marker.stage == BEGUN:  # and a crash came at once
        plain_size = marker.plain_size
    elif not options.grow:
        plain_size = (plain_size - room) // blank.sector_size * blank.sector_size
        if plain_size < shift:
            raise DeviceFullError(
                f"the image needs {room} bytes at its end that are not used, and as much as"
                f" {shift} bytes before them [L165]",
                hint="let it grow, or put the header into a file of its own",
            )
    size = plain_size + -plain_size % blank.sector_size
    base = max(size, shift)
    if options.grow and image.size < base + room:
        image.resize(base + room)
    begun = Marker(BEGUN, options.grow, plain_size, shift)
    write_marker(image, begun)
    moved = Segment("linear", base + shift, min(size, shift))
    copy_first_bytes(image, 0, moved.offset, moved.size or 0)
    with new_volume_key(made) as key:
        check_key(key, made.cipher)
        header, material = enrol(blank, made, secret, key)
        intent = Intent("encrypt", "backward", blank.sector_size, size, shift)
        header = with_record(header, intent, options)
        old = Segment("linear", 0, size)
        new = blank.segments[0]
        plan = ShiftedEncryption(record_of(header), old, new, size, False, moved)
        keys = VolumeKeys({0: VolumeKey(key, 0)}).copy()
    digests = KeyDigests(None, 0)
    header = with_proof(header, plan, keys, digests, options)
    _place(image, header, material, replace(begun, stage=STAGED, staged_offset=base))
    return Luks2Reencryption(
        places,
        read_header(image),
        plan,
        Progress(0),
        keys,
        digests,
        options,
    )


def with_sector_size(made: FormatOptions, image: BlockDevice, *, exact: bool) -> FormatOptions:
    """Return the options with a sector size, if they leave it open.

    Args:
        made: As the caller gave them.
        image: The plain image.
        exact: Whether its size must be a whole number of sectors.
    """
    if made.version != LUKS2:
        raise UnsupportedError(
            "an image can be encrypted in place to LUKS2 only", feature="encryption to LUKS1"
        )
    if made.sector_size is not None:
        return made
    fits = not exact or image.size % _DEFAULT_SECTOR == 0
    return replace(made, sector_size=_DEFAULT_SECTOR if fits else SECTOR_SIZE)


def _check_plain(image: BlockDevice) -> int:
    """Check that an image can be encrypted; return its size in bytes."""
    marker = read_marker(image)
    if marker is not None and marker.stage == STAGED:
        raise UnfinishedReencryptionError(
            "the image is being encrypted already [L165]", hint="resume that first"
        )
    if is_luks(image):
        raise LuksExistsError(
            "there is a LUKS header already: the image seems to be encrypted",
            hint="to give it another key or cipher, re-encrypt it",
        )
    if image.size == 0:
        raise ArgumentError("an image of no bytes cannot be encrypted: format it")
    return image.size


def _place(image: BlockDevice, header: Header, material: dict[int, bytes], marker: Marker) -> None:
    """Stage a header, and put it into its place."""
    size = header.keyslots_offset + header.keyslots_size
    whole = MemoryDevice(size)
    create_header(whole, header, material)
    staged = replace(marker, header_size=size, header_digest=hashlib.sha256(whole.content).digest())
    image.write(staged.staged_offset, whole.content)
    image.flush()
    write_marker(image, staged)
    place_header(image, staged, header.metadata_size)
    write_marker(image, replace(staged, stage=PLACED))
