"""The same through LUKS: crashes tear its sectors, and create makes two layers at once."""

from __future__ import annotations

from collections import Counter

import pytest

import luks
from blobstore.container.initialise import initialise
from blobstore.store.store import Store
from formats.devices.device import BlockDevice, MemoryDevice
from formats.errors import FormatError
from tests.support.devices import RecordingDevice, crash_states
from tests.support.stores import UNWRITTEN, Contents, contents, spec

SECRET = b"secret"
KDF = luks.Pbkdf2("sha256", 1000)
SPECS = [spec("tpm", 9000), spec("vpd", 50, b"vpd")]
#: Small, so that many states can be looked at.
LAYOUT = {"keyslots_size": 256 << 10, "data_offset": 1 << 20}
SIZE = (1 << 20) + (128 << 10)


def make(device: BlockDevice, version: int, sector_size: int) -> None:
    options = LAYOUT if version == 2 else {}
    with luks.format(
        device,
        SECRET,
        version=version,
        sector_size=sector_size,
        kdf=KDF,
        overwrite=True,
        **options,  # type: ignore[arg-type]
    ) as volume:
        initialise(volume, SPECS, encrypted=True)


def look(content: bytes) -> Contents:
    with luks.open(MemoryDevice(content), SECRET) as volume:
        return contents(Store.on_device(volume, encrypted=True, read_only=True))


@pytest.mark.parametrize(("version", "sector_size"), [(2, 4096), (2, 512), (1, 512)])
def test_put(version: int, sector_size: int) -> None:
    size = SIZE if version == 2 else SIZE + (2 << 20)
    device = RecordingDevice(bytes(size))
    make(device, version, sector_size)
    before = device.content
    device.log.clear()
    states: list[Contents] = [{"tpm": UNWRITTEN, "vpd": b"vpd"}]
    with luks.open(device, SECRET, read_only=False) as volume:
        store = Store.on_device(volume, encrypted=True)
        for name, blob in (("tpm", b"1" * 9000), ("vpd", b"new"), ("tpm", b"2" * 5000)):
            store.put(name, blob)
            states.append(contents(store))
            device.mark(len(states) - 1)
        store.close()
    seen: Counter[str] = Counter()
    for crash in crash_states(before, device.log, exhaustive=3, samples=12):
        last = max((mark for mark in crash.marks if isinstance(mark, int)), default=0)
        found = look(crash.content)
        assert found in states[last : last + 2]
        seen["old" if found == states[last] else "new"] += 1
    assert seen.total() > 100
    assert seen["new"] >= 3


@pytest.mark.parametrize("over", ["blank", "another store"])
def test_create(over: str) -> None:
    """There is no LUKS header, or one without a container, or the whole new store."""
    before = bytes(SIZE)
    if over == "another store":
        old = MemoryDevice(SIZE)
        make(old, 2, 512)
        before = bytes(old.content)
    device = RecordingDevice(before)
    make(device, 2, 4096)
    device.mark("done")
    new_header = luks.load_header(MemoryDevice(device.content)).uuid
    seen: Counter[str] = Counter()
    for crash in crash_states(before, device.log, exhaustive=2, samples=6):
        try:
            found = look(crash.content)
        except FormatError as error:
            assert "done" not in crash.marks
            seen[type(error).__name__] += 1
            continue
        assert found == {"tpm": UNWRITTEN, "vpd": b"vpd"}
        is_new = luks.load_header(MemoryDevice(crash.content)).uuid == new_header
        assert is_new or over == "another store"
        assert is_new or "done" not in crash.marks
        seen["new" if is_new else "old"] += 1
    assert seen["new"] >= 2
    assert seen.total() - seen["new"] > 50
