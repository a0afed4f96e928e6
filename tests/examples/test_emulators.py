"""The device of docs/emulators.md, run as it stands there."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

import blobstore
import luks
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError
from tests.support.devices import FaultyDevice
from tests.support.stores import image, open_store, spec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "emulators.md"
SECRET = b"an emulator"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's code defines."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_eeprom_survives(page: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "image"
    with blobstore.create(path, {}, SECRET, kdf=luks.Pbkdf2("sha256", 1000)) as store:
        eeprom = page["Eeprom"](store, "eeprom")
        assert eeprom.read(0, 4) == b"\xff" * 4
        eeprom.write(2, b"ab")
    with blobstore.open(path, SECRET) as store:
        eeprom = page["Eeprom"](store, "eeprom")
        assert eeprom.read(0, 5) == b"\xff\xffab\xff"
        assert store.section("eeprom").max_size == 256


def test_a_damaged_eeprom_is_not_a_new_one(page: dict[str, Any]) -> None:
    content = bytearray(image([spec("eeprom", 256, b"\x55" * 256)]))
    at = content.find(b"\x55" * 256)
    while at >= 0:
        content[at] ^= 1
        at = content.find(b"\x55" * 255, at + 256)
    with pytest.raises(blobstore.CorruptBlobError):
        page["Eeprom"](open_store(bytes(content)), "eeprom")


def test_a_write_that_failed_is_not_read(page: dict[str, Any]) -> None:
    memory = MemoryDevice(image([spec("eeprom", 256, bytes(256))]))
    opening = FaultyDevice(memory, "flush", 1 << 30)
    open_store(opening).close()
    device = FaultyDevice(memory, "flush", opening.counts["flush"] + 1, persistent=True)
    eeprom = page["Eeprom"](open_store(device), "eeprom")
    with pytest.raises(DeviceError):
        eeprom.write(0, b"new")
    assert eeprom.read(0, 3) == bytes(3)


def test_asyncio_waits_in_a_thread(page: dict[str, Any]) -> None:
    store = open_store(image([spec("eeprom", 256)]))
    eeprom = page["Eeprom"](store, "eeprom")

    async def all_at_once() -> None:
        writes = [asyncio.create_task(_write(number)) for number in range(20)]
        await asyncio.sleep(0)
        writes[3].cancel()  # nothing else is lost with it
        await asyncio.gather(*writes, return_exceptions=True)

    async def _write(number: int) -> None:
        await page["write"](eeprom, number, bytes([number]))

    asyncio.run(all_at_once())
    written = store.get("eeprom")[:20]
    expected = bytes(range(20))
    assert written[:3] + written[4:] == expected[:3] + expected[4:]
    assert written[3] in (3, 0xFF)
