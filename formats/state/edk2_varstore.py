"""The flash with OVMF's variables, recognised by its two headers (F19, F20).

Its content belongs to the firmware: nothing after the headers is parsed here, but in
`formats.state.uefi`.
The rules are those of ``spec/foreign-state.md``.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.errors import (
    EmptyImageError,
    ForeignImageError,
    FormatError,
    TruncatedImageError,
)

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer

# Zeros, GUID, size, signature, attributes, header size, checksum, two words.
_VOLUME: Final = struct.Struct("<16s16sQ4sIHHHBB")
_BLOCKS: Final = struct.Struct("<II")
# GUID, size, format, state, two reserved words.
_STORE: Final = struct.Struct("<16sIBBHI")

_VOLUME_GUID: Final = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
_STORE_GUIDS: Final = {
    uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le: True,
    uuid.UUID("ddcf3616-3275-4164-98b6-fe85707ffe7d").bytes_le: False,
}
_SIGNATURE: Final = b"_FVH"
_REVISION: Final = 2
_FORMATTED, _HEALTHY = 0x5A, 0xFE
_FLASH_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class VariableFlash:
    """The headers of a flash with variables. Sizes in bytes.

    Attributes:
        size: Of the flash.
        volume_size: Of the firmware volume at its start.
        store_size: Of the variable store in that.
        authenticated: Whether its variables can be authenticated (Secure Boot).
    """

    size: int
    volume_size: int
    store_size: int
    authenticated: bool


def decode_flash(flash: ReadableBuffer) -> VariableFlash:
    """Check that these bytes are a whole flash of variables (F19, F20).

    Raises:
        EmptyImageError: It has no bytes, or only zeros.
        ForeignImageError: It is something else: firmware code, for example.
        TruncatedImageError: It ends before its volume does.
        FormatError: Its headers are damaged, or it does not have the size of a flash.
    """
    content = memoryview(flash).cast("B")
    first = bytes(content[:_FLASH_BLOCK])
    if first in (bytes(len(first)), b"\xff" * len(first)):
        raise EmptyImageError(
            "the file of UEFI variables is empty",
            rule="F19",
            hint="if it is the template of a new machine, import it as a blank flash",
        )
    if len(content) < _VOLUME.size + _BLOCKS.size:
        raise ForeignImageError("the file is not a flash with UEFI variables", rule="F19")
    volume = _VOLUME.unpack_from(content)
    zeros, guid, volume_size, signature, _, header_size, _, _, _, revision = volume
    if signature != _SIGNATURE or guid != _VOLUME_GUID or any(zeros):
        raise ForeignImageError("the file is not a flash with UEFI variables", offset=0, rule="F19")
    if len(content) < volume_size:
        raise TruncatedImageError(
            f"a flash whose volume has {volume_size} bytes ends after {len(content)}", rule="F19"
        )
    store_at = _validate_volume(content, volume_size, header_size, revision)
    guid, store_size, form, state, _, _ = _STORE.unpack_from(content, store_at)
    if guid not in _STORE_GUIDS:
        raise ForeignImageError("the flash has no variable store", offset=store_at, rule="F19")
    if (form, state) != (_FORMATTED, _HEALTHY) or not (
        _STORE.size <= store_size <= volume_size - store_at
    ):
        raise FormatError("the variable store is damaged", offset=store_at, rule="F19")
    rest = bytes(content[volume_size:])
    if rest.strip(b"\0") and rest.strip(b"\xff"):
        raise ForeignImageError(
            "the variables are followed by something else, such as firmware code",
            offset=volume_size,
            rule="F20",
            hint="import the file of variables alone, as OVMF_VARS.fd",
        )
    if len(content) % _FLASH_BLOCK:
        raise FormatError(f"a flash cannot have {len(content)} bytes", rule="F20")
    return VariableFlash(len(content), volume_size, store_size, _STORE_GUIDS[guid])


def header_end(flash: ReadableBuffer) -> int:
    """Return where the header of the volume ends, in a flash that `decode_flash` has checked."""
    return int(_VOLUME.unpack_from(memoryview(flash).cast("B"))[5])


def require_blank_flash(flash: ReadableBuffer) -> int:
    """Check that these bytes are a flash that nothing has been written to; return their number.

    Raises:
        EmptyImageError: There are none.
        ForeignImageError: Some are neither all ``00`` nor all ``ff``.
        FormatError: It does not have the size of a flash.
    """
    content = bytes(flash)
    if not content:
        raise EmptyImageError("the file of UEFI variables is empty", rule="F19")
    if content.strip(b"\0") and content.strip(b"\xff"):
        raise ForeignImageError("the flash is not blank", rule="F20")
    if len(content) % _FLASH_BLOCK:
        raise FormatError(f"a flash cannot have {len(content)} bytes", rule="F20")
    return len(content)


def _validate_volume(content: memoryview, volume_size: int, header_size: int, revision: int) -> int:
    """Check the header of the volume; return where it ends."""
    blocks_end = header_size - _BLOCKS.size
    if (
        revision != _REVISION
        or blocks_end < _VOLUME.size + _BLOCKS.size
        or (blocks_end - _VOLUME.size) % _BLOCKS.size
        or header_size + _STORE.size > volume_size
    ):
        raise FormatError("the header of the flash's volume is damaged", offset=48, rule="F19")
    header = content[:header_size]
    if sum(struct.unpack(f"<{header_size // 2}H", header)) & 0xFFFF:
        raise FormatError("the flash's volume has a wrong checksum", offset=50, rule="F19")
    *blocks, last = _BLOCKS.iter_unpack(header[_VOLUME.size :])
    # The driver of flashes on ARM, RISC-V and LoongArch counts the blocks of the whole device.
    if last != (0, 0) or sum(number * size for number, size in blocks) < volume_size:
        raise FormatError("the blocks of the flash's volume do not add up", offset=56, rule="F19")
    return header_size
