"""What the LUKS tests share: cheap costs, small volumes, vectors, foreign images."""

from __future__ import annotations

import hashlib
import json
import lzma
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luks
from formats.devices.device import MemoryDevice
from formats.frozen import replace
from luks.header import luks1, luks2
from luks.header.luks2_binary import (
    BINARY_SIZE,
    PRIMARY_MAGIC,
    SECONDARY_MAGIC,
    decode_binary,
    encode_copy,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from formats.devices.device import BlockDevice

VECTORS = Path(__file__).parents[1] / "vectors" / "luks"

#: The lowest costs that may be created; no test is about how long they take.
PBKDF2 = luks.Pbkdf2("sha256", 1000)
ARGON2ID = luks.Argon2("argon2id", 4, 32, 1)
ARGON2I = luks.Argon2("argon2i", 4, 32, 1)

PASSPHRASE = b"correct horse"
OTHER = b"battery staple"

#: Room for one keyslot of a 32-byte key, the smallest volumes there are.
SMALL: dict[str, Any] = {"key_size": 32, "keyslots_size": 128 << 10, "data_offset": 160 << 10}


def vectors(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def image(name: str) -> bytes:
    return lzma.decompress((VECTORS / "images" / name).read_bytes())


def pattern(tag: str, size: int) -> bytes:
    """What the foreign images hold: numbered records of 16 bytes."""
    head = hashlib.sha256(tag.encode()).digest()[:8]
    records = (head + number.to_bytes(8, "big") for number in range(-(-size // 16)))
    return b"".join(records)[:size]


def shared_corpus() -> Path | None:
    """The larger corpus beside the repository, which may be missing."""
    path = Path(__file__).parents[3] / "shared" / "corpus"
    return path if path.is_dir() else None


def small_volume(device: BlockDevice | None = None, **options: Any) -> MemoryDevice:
    """Make a small volume in memory and return its device."""
    device = MemoryDevice(0) if device is None else device
    assert isinstance(device, MemoryDevice)
    defaults: dict[str, Any] = {"kdf": PBKDF2, "size": 64 << 10}
    if options.get("version", 2) == 2:
        defaults.update(SMALL)
    else:
        defaults["key_size"] = 32
    luks.format(device, PASSPHRASE, **{**defaults, **options}).close()
    return device


@dataclass(frozen=True)
class Template:
    """A volume's device and header, from which tests make others by changing the metadata."""

    device: MemoryDevice
    header: luks.Header

    def copy(self) -> MemoryDevice:
        return MemoryDevice(self.device.content)


def template(version: int = 2, **options: Any) -> Template:
    device = small_volume(version=version, **options)
    return Template(device, luks.load_header(device))


#: The volume key of `known_volume`.
KEY = bytes(range(32))


def known_volume(version: int, **luks2_options: Any) -> Template:
    """Return a volume with volume key `KEY` that `OTHER` opens; the options are LUKS2's."""
    device = MemoryDevice(0)
    luks.format(
        device,
        OTHER,
        version=version,
        key_size=len(KEY),
        volume_key=KEY,
        size=4096,
        kdf=PBKDF2,
        **(luks2_options if version == 2 else {}),
    ).close()
    return Template(device, luks.load_header(device))


def json_of(header: luks.Header) -> dict[str, Any]:
    """A copy of the JSON metadata that a header was decoded from."""
    root: dict[str, Any] = json.loads(json.dumps(header.source.root))
    return root


def with_json(base: Template, root: Mapping[str, Any] | bytes) -> MemoryDevice:
    """A volume whose both header copies hold this JSON text, with right checksums."""
    text = root if isinstance(root, bytes) else json.dumps(root).encode()
    device = base.copy()
    for which, offset in ((luks2.PRIMARY, 0), (luks2.SECONDARY, base.header.metadata_size)):
        put_copy(device, base.header, text, which, offset)
    return device


def put_copy(
    device: MemoryDevice,
    header: luks.Header,
    text: bytes,
    which: int,
    offset: int,
    **fields: Any,
) -> None:
    """Write one header copy with this JSON text and these binary fields."""
    magic = (PRIMARY_MAGIC, SECONDARY_MAGIC)[which]
    block = bytes(device.content[offset : offset + BINARY_SIZE])
    binary = decode_binary(block, magic=magic, offset=offset)._replace(**fields)
    area = text.ljust(header.metadata_size - BINARY_SIZE, b"\0")
    device.content[offset : offset + header.metadata_size] = encode_copy(binary, area)


def fix_checksum(device: MemoryDevice, offset: int, size: int = 16384) -> None:
    """Make the SHA-256 checksum of a header copy right, whatever was done to it."""
    field = slice(offset + 448, offset + 512)
    device.content[field] = bytes(64)
    digest = hashlib.sha256(device.content[offset : offset + size]).digest()
    device.content[field] = digest.ljust(64, b"\0")


def with_luks1(base: Template, **fields: Any) -> MemoryDevice:
    """A LUKS1 volume with these header fields changed."""
    device = base.copy()
    raw = replace(base.header.source, **fields)
    device.content[: luks1.HEADER_SIZE] = luks1.encode(raw)
    return device


def with_slot(raw: luks1.RawHeader, number: int, **fields: Any) -> tuple[luks1.RawKeyslot, ...]:
    """The keyslots of a LUKS1 header, one of them changed."""
    slots = list(raw.keyslots)
    slots[number] = replace(slots[number], **fields)
    return tuple(slots)


def opens(device: BlockDevice, passphrase: bytes = PASSPHRASE) -> bool:
    """Whether the volume opens; a `StorageError` says that it does not."""
    with suppress(luks.StorageError), luks.open(device, passphrase):
        return True
    return False
