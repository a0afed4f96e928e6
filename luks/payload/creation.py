"""Making LUKS volumes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from uuid import UUID

from formats.devices.device import is_blank
from formats.devices.file import FileDevice
from formats.devices.new_file import new_file
from formats.errors import ArgumentError
from formats.frozen import replace
from luks.crypto.ciphers import check_usable, has_equal_halves, sector_cipher
from luks.crypto.hashes import lookup
from luks.crypto.spec import DEFAULT_CIPHER, parse
from luks.errors import DeviceFullError, ForeignImageError, LuksExistsError, UnsupportedError
from luks.header import layout, luks1
from luks.header.detection import is_luks, is_same_place
from luks.header.luks2_binary import VERSION as LUKS2
from luks.header.policy import check_payload_place
from luks.header.text import normal_uuid
from luks.header.writer import create_header
from luks.keys.costs import check_kdf, digest_cost, keyslot_cost
from luks.keys.enroll import LUKS1_DIGEST_SIZE, add_keyslot, new_digest
from luks.keys.keyslots import VolumeKey
from luks.model import SECTOR_SIZE
from luks.payload.profiles import default_key_size
from luks.payload.volume import Volume
from luks.secret.randomness import source_or_system
from luks.secret.secrets import Secret, view_of

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from luks.header.detection import Place
    from luks.model import Header, KdfCost, Pbkdf2
    from luks.secret.randomness import RandomSource


def format(  # noqa: A001  it is luks.format
    path_or_device: Place,
    secret: bytes | Secret,
    *,
    version: int = LUKS2,
    header: Place | None = None,
    size: int | None = None,
    cipher: str = DEFAULT_CIPHER,
    key_size: int | None = None,
    hash_name: str = "sha256",
    sector_size: int | None = None,
    kdf: KdfCost | str | None = None,
    iter_time: int = 2000,
    uuid: str | None = None,
    label: str = "",
    subsystem: str = "",
    volume_key: bytes | Secret | None = None,
    metadata_size: int = 16 << 10,
    keyslots_size: int = 2016 << 10,
    data_offset: int | None = None,
    alignment: int = layout.DATA_ALIGNMENT,
    stripes: int = layout.STRIPES,
    keyslot_cipher: tuple[str, int] | None = None,
    overwrite: bool = False,
    random: RandomSource | None = None,
) -> Volume:
    """Make a LUKS1 or LUKS2 volume with one passphrase, and open it for writing.

    A crash at any instant leaves no header that opens, or the whole new one. A
    path that does not exist appears complete or not at all. The payload is not
    written: it reads as garbage until it is.

    Args:
        path_or_device: Where the volume goes. A path that does not exist
            becomes a new file; one that does is formatted in place, like a
            device, which stays the caller's to close.
        secret: Passphrase or content of a key file, for keyslot 0. Not modified.
        version: 1 or 2.
        header: Where a detached header goes, likewise; the payload's device then
            stays as it is.
        size: Bytes of the payload, whole sectors. A new or empty file is made
            to fit; what has a size already must have room for it, and its
            payload is all that remains.
        cipher: dm-crypt's cipher string, for payload and keyslots.
        key_size: Bytes of the volume key; by default 64 for XTS, which takes two
            keys, else 32 or the most that the cipher takes.
        hash_name: Hash of PBKDF2, AF and digest, in LUKS spelling.
        sector_size: Bytes per sector: 4096 by default, in LUKS1 always 512.
        kdf: Cost of the key derivation, or its kind, ``"argon2id"``,
            ``"argon2i"`` or ``"pbkdf2"``, to be measured. By default Argon2id,
            in LUKS1 PBKDF2.
        iter_time: Milliseconds that a measured key derivation shall take.
        uuid: UUID; a random one by default.
        label: LUKS2 only; at most 47 bytes of UTF-8.
        subsystem: LUKS2 only; likewise.
        volume_key: Key of the payload, ``key_size`` bytes; random by default.
        metadata_size: Bytes of each LUKS2 header copy, 16 KiB to 4 MiB.
        keyslots_size: Bytes of the LUKS2 keyslots area; a keyslot takes 252 KiB
            for a key of 64 bytes.
        data_offset: Byte offset of the payload; by default the next multiple of
            ``alignment`` behind the header, or 0 if that is detached.
        alignment: Bytes, a multiple of 512.
        stripes: AF stripes; others than 4000 in LUKS1 only, where QEMU refuses
            them.
        keyslot_cipher: Cipher string and key size in bytes for the key material,
            LUKS2 only; by default those of the payload.
        overwrite: Permit to destroy what is there.
        random: Of everything that is random, keys as well, such as a
            `luks.SeededSource` for an image that shall be the same each time; by
            default the operating system's. With it, and a cost given as ``kdf``,
            the same arguments make the same bytes.

    Raises:
        LuksExistsError: There is a LUKS header already.
        ForeignImageError: There is something else.
        DeviceFullError: There is not enough room.
        PolicyError, UnsupportedError: The cipher or hash must not be, or cannot
            be used.
        DeviceError: The image cannot be made, opened or written, or is in use.
        FileExistsError: Somebody else made the new file meanwhile.
        LuksHeaderError: With a detached header, the payload would overlap another one of
            the same UUID (L52).
        ArgumentError: The arguments do not fit together.
    """
    view_of(secret)
    if header is not None and is_same_place(path_or_device, header):
        raise ArgumentError("the image and its detached header are one and the same [L52]")
    if key_size is None:
        key_size = default_key_size(cipher)
    check_usable(cipher, key_size)
    if keyslot_cipher is not None:
        check_usable(*keyslot_cipher)
    blank = _lay_out(
        version,
        cipher=cipher,
        key_size=key_size,
        hash_name=hash_name,
        sector_size=sector_size,
        uuid=_new_uuid(random) if uuid is None else normal_uuid(uuid),
        label=label,
        subsystem=subsystem,
        detached=header is not None,
        data_offset=data_offset,
        metadata_size=metadata_size,
        keyslots_size=keyslots_size,
        alignment=alignment,
        stripes=stripes,
        keyslot_cipher=keyslot_cipher,
    )
    if size is not None and (size <= 0 or size % blank.sector_size):
        raise ArgumentError(f"size is a positive multiple of {blank.sector_size} bytes, not {size}")
    check_kdf(kdf, version, hash_name)
    if size is None and _is_new(path_or_device):
        raise ArgumentError("a new volume needs a size")
    key = Secret(source_or_system(random)(key_size) if volume_key is None else view_of(volume_key))
    opened: list[BlockDevice] = []
    try:
        _check_key(key, key_size, cipher)
        with ExitStack() as names:  # new files take their names when it ends
            device = header_device = None
            header_size = blank.keyslots_offset + blank.keyslots_size
            if header is not None:
                header_device = _prepare(names, opened, header, header_size, overwrite=overwrite)
            payload_end = blank.data_offset + (size or blank.sector_size)
            device = _prepare(names, opened, path_or_device, payload_end, overwrite=overwrite)
            cost = keyslot_cost(
                kdf,
                version=version,
                hash_name=hash_name,
                key_size=key_size,
                iter_time=iter_time,
            )
            of_digest = digest_cost(kdf, hash_name)
            enrolled, material = _enrol(
                blank, cost, of_digest, secret, key, hash_name, keyslot_cipher, random
            )
            check_payload_place(device, enrolled)
            written = create_header(header_device or device, enrolled, material, random)
            volume = Volume(
                device,
                written,
                VolumeKey(key, 0),
                read_only=False,
                owned=tuple(ours for ours in opened if ours is device),
            )
    except BaseException:
        key.wipe()
        for ours in opened:
            ours.close()
        raise
    for ours in opened:
        if ours is header_device:
            ours.close()
    return volume


def _lay_out(
    version: int,
    *,
    cipher: str,
    key_size: int,
    hash_name: str,
    sector_size: int | None,
    uuid: str,
    label: str,
    subsystem: str,
    detached: bool,
    data_offset: int | None,
    metadata_size: int,
    keyslots_size: int,
    alignment: int,
    stripes: int,
    keyslot_cipher: tuple[str, int] | None,
) -> Header:
    if version == LUKS2:
        if stripes != layout.STRIPES:
            raise ArgumentError(f"LUKS2 has {layout.STRIPES} stripes")
        return layout.new_luks2(
            cipher=cipher,
            key_size=key_size,
            sector_size=4096 if sector_size is None else sector_size,
            uuid=uuid,
            label=label,
            subsystem=subsystem,
            detached=detached,
            data_offset=data_offset,
            metadata_size=metadata_size,
            keyslots_size=keyslots_size,
            alignment=alignment,
        )
    if version != luks1.VERSION:
        raise ArgumentError(f"version is 1 or 2, not {version!r}")
    if keyslot_cipher is not None:
        raise ArgumentError("LUKS1 has one cipher for payload and keyslots")
    if label or subsystem or sector_size not in {None, SECTOR_SIZE}:
        raise ArgumentError("LUKS1 has no label, no subsystem, and sectors of 512 bytes")
    return layout.new_luks1(
        cipher=cipher,
        key_size=key_size,
        hash_name=hash_name,
        uuid=uuid,
        detached=detached,
        data_offset=data_offset,
        alignment=alignment,
        stripes=stripes,
    )


def _check_key(key: Secret, key_size: int, cipher: str) -> None:
    """Check the key itself, before anything is written."""
    if len(key) != key_size:
        raise ArgumentError(f"volume_key has {len(key)} bytes and key_size is {key_size}")
    view = key.view()
    sector_cipher(cipher, view, SECTOR_SIZE)
    if parse(cipher).mode == "xts" and has_equal_halves(view):
        raise UnsupportedError(
            "an XTS key with two equal halves is weak: no volume is made with it",
            feature="XTS with equal keys",
        )


def _enrol(
    blank: Header,
    cost: KdfCost,
    of_digest: Pbkdf2,
    secret: bytes | Secret,
    key: Secret,
    hash_name: str,
    keyslot_cipher: tuple[str, int] | None,
    random: RandomSource | None,
) -> tuple[Header, dict[int, bytes]]:
    size = LUKS1_DIGEST_SIZE if blank.version == luks1.VERSION else lookup(hash_name).digest_size
    digest = new_digest(key.view(), of_digest, size, random)
    return add_keyslot(
        replace(blank, digests=MappingProxyType({0: digest})),
        0,
        kdf=cost,
        secret=view_of(secret),
        key=key.view(),
        hash_name=hash_name,
        cipher=keyslot_cipher,
        random=random,
    )


def _new_uuid(random: RandomSource | None) -> str:
    return str(UUID(bytes=source_or_system(random)(16), version=4))


def _is_new(place: Place) -> bool:
    """Say whether there is nothing yet: no file, or one of no bytes."""
    if isinstance(place, str | os.PathLike):
        path = Path(place)
        return not path.exists() or (path.is_file() and path.stat().st_size == 0)
    return place.size == 0


def _prepare(
    names: ExitStack, opened: list[BlockDevice], place: Place, end: int, *, overwrite: bool
) -> BlockDevice:
    """Open what is to be formatted and check that it may be, and has ``end`` bytes."""
    if not isinstance(place, str | os.PathLike):
        device = place
    else:
        if Path(place).exists():
            device = FileDevice(place, read_only=False)
        else:
            device = names.enter_context(new_file(place, end))
        opened.append(device)
    if not overwrite:
        _check_blank(device)
    if device.size == 0:
        device.resize(end)
    if device.size < end:
        raise DeviceFullError(f"{end} bytes are needed, and there are only {device.size}")
    return device


def _check_blank(device: BlockDevice) -> None:
    if is_luks(device):
        raise LuksExistsError(
            "there is a LUKS header already, and formatting destroys its keys",
            hint="overwrite it only if nothing on the volume is needed any more",
        )
    if not is_blank(device):
        raise ForeignImageError(
            "there is something that is not LUKS",
            hint="overwrite it only if it is not needed any more",
        )
