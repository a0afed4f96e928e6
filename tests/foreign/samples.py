"""Device state of other programs, made by hand, and stores to put it in."""

from __future__ import annotations

import io
import json
import struct
import uuid
from typing import TYPE_CHECKING, Any

from blobstore.foreign.encryption import StateKey
from formats.state.swtpm import PlainState, Slot, encode_state
from formats.state.swtpm_linear import encode_linear
from tests.support.devices import RecordingDevice
from tests.support.stores import image

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore.container.initialise import SectionSpec

PERMANENT = encode_state(PlainState(bytes.fromhex("0003ab364723") + b"permanent" * 20))
VOLATILE = encode_state(PlainState(bytes.fromhex("000445637889") + b"volatile" * 30))
TPM_12 = encode_state(PlainState(bytes.fromhex("00010022") + b"permanent"))
KEY = StateKey(b"00" * 16)
ENCRYPTED = encode_state(KEY.encrypt(PlainState(bytes.fromhex("0003ab364723") + b"p")))

NAMES = ("tpm-permanent-state", "tpm-volatile-state", "tpm-save-state")


def recorded(*specs: SectionSpec, encrypted: bool = True, free: int = 3 << 20) -> RecordingDevice:
    return RecordingDevice(image(specs, free=free, encrypted=encrypted, block_size=4096))


def directory(path: Path, **files: bytes) -> Path:
    """Make a directory; ``permall`` and so on are files of a TPM 2.0."""
    path.mkdir()
    for name, content in files.items():
        (path / f"tpm2-00.{name}").write_bytes(content)
    return path


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def encode_file(states: dict[Slot, bytes]) -> io.BytesIO:
    return io.BytesIO(encode_linear(states))


VOLUME = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
AUTHENTICATED = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792")
PLAIN = uuid.UUID("ddcf3616-3275-4164-98b6-fe85707ffe7d")


def flash(
    *,
    guid: uuid.UUID = VOLUME,
    blocks: tuple[tuple[int, int], ...] = ((2, 4096), (0, 0)),
    revision: int = 2,
    checksum: int = 0,
    store: uuid.UUID = AUTHENTICATED,
    store_size: int = 4096,
    state: bytes = b"\x5a\xfe",
    signature: bytes = b"_FVH",
    rest: bytes = b"",
) -> bytes:
    """Return a flash of 8192 bytes, and ``rest``."""
    size = 56 + 8 * len(blocks)
    head = (
        bytearray(16)
        + guid.bytes_le
        + struct.pack("<Q4sIHHHBB", 8192, signature, 7, size, 0, 0, 0, revision)
    )
    head += b"".join(struct.pack("<II", *block) for block in blocks)
    total = sum(struct.unpack(f"<{len(head) // 2}H", head)) + checksum
    struct.pack_into("<H", head, 50, -total & 0xFFFF)
    variables = store.bytes_le + struct.pack("<I", store_size) + state + bytes(6)
    return bytes(head + variables).ljust(8192, b"\xff") + rest


GUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
BOOT: dict[str, Any] = {"name": "Boot0000", "guid": GUID, "attr": 7, "data": "00Ff"}


def uefi_json(*variables: Any, **more: Any) -> bytes:
    return json.dumps({"version": 2, "variables": list(variables)} | more).encode()
