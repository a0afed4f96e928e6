"""Volumes whose headers tests convert, and what must hold for them at every moment."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice
from tests.luks.support import PBKDF2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luks.header.detection import Place

#: The passphrase of each keyslot.
SECRETS = tuple(f"keyslot {number}".encode() for number in range(8))
PAYLOAD = b"payload!" * 512

#: Key material of 2 KiB: all places of LUKS1 but the last lie where LUKS2 has its copies.
CROWDED: dict[str, Any] = {"stripes": 64, "data_offset": 68 << 10}
#: Places of 32 KiB, of which only the first lies there, and no room besides; as with 4000 stripes.
TIGHT: dict[str, Any] = {"stripes": 1000, "data_offset": 288 << 10}
#: The same, with room before the payload.
ROOMY: dict[str, Any] = {"stripes": 1000, "data_offset": 512 << 10}


@cache
def _luks1(keyslots: tuple[int, ...], options: tuple[tuple[str, Any], ...]) -> bytes:
    device = MemoryDevice(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.urandom", luks.SeededSource(b"converting"))
        _make(device, keyslots, dict(options))
    return bytes(device.content)


def _make(device: MemoryDevice, keyslots: tuple[int, ...], options: dict[str, Any]) -> None:
    first, *others = keyslots
    chosen: dict[str, Any] = {"key_size": 32, **options}
    chosen["volume_key"] = bytes(range(chosen["key_size"]))
    with luks.format(device, SECRETS[first], version=1, size=4096, kdf=PBKDF2, **chosen) as volume:
        volume.write(0, PAYLOAD)
    with luks.edit(device) as header:
        header.unlock(SECRETS[first])
        for number in others:
            header.add_keyslot(SECRETS[number], keyslot=number, kdf=PBKDF2)
        if first != 0:
            header.add_keyslot(SECRETS[first], keyslot=first, kdf=PBKDF2)
            header.remove_keyslot(0)


def luks1_volume(keyslots: Iterable[int], options: dict[str, Any]) -> bytes:
    """A LUKS1 volume with these keyslots."""
    return _luks1(tuple(keyslots), tuple(options.items()))


def luks2_volume(keyslots: Iterable[int], options: dict[str, Any]) -> bytes:
    """The same, converted."""
    device = MemoryDevice(luks1_volume(keyslots, options))
    luks.convert_header(device, 2)
    return bytes(device.content)


def check_opens(place: Place, keyslots: Iterable[int]) -> luks.Header:
    """Each passphrase opens the payload, whatever the number of its keyslot."""
    header = luks.load_header(place)
    for number in keyslots:
        with _opened(place, header, number) as volume:
            assert volume.read(0, len(PAYLOAD)) == PAYLOAD
    return header


def _opened(place: Place, header: luks.Header, number: int) -> luks.Volume:
    if number in header.keyslots:  # most probably the one
        with suppress(luks.NoKeyslotMatchError):
            return luks.open(place, SECRETS[number], keyslot=number)
    return luks.open(place, SECRETS[number])
