"""Power cuts, failing devices and interrupts while a header is converted: no passphrase is lost."""

from __future__ import annotations

import hashlib
import tarfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice
from tests.luks.converting import (
    CROWDED,
    ROOMY,
    SECRETS,
    TIGHT,
    check_opens,
    luks1_volume,
    luks2_volume,
)
from tests.luks.programs import accepts, key_file, qemu_read
from tests.luks.support import shared_corpus
from tests.support.devices import (
    SECTOR,
    Flush,
    RecordingDevice,
    WholeSectorFaults,
    Write,
    crash_states,
)
from tests.support.effort import cases
from tests.support.interrupts import InterruptPoints, collecting_what_is_new

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.devices import Operation

LAYOUTS = {
    "crowded": (CROWDED, (0, 3, 7)),
    "tight": (TIGHT, (0, 1, 7)),
    "renumbered": (TIGHT, (0, 1, 2, 3, 4, 5, 6)),
    "roomy": (ROOMY, (0, 6)),
}
_TRIED = list(LAYOUTS)[: cases(3, 4)]
CASES = [(name, version) for name in _TRIED for version in (1, 2)]
BOTH = pytest.mark.parametrize(("name", "version"), CASES, ids=str)


@BOTH
def test_l201_the_first_sector_is_written_alone(name: str, version: int) -> None:
    """All before it is durable, and so is it before anything else; then no copy is damaged."""
    content, _ = before(name, version)
    device = RecordingDevice(content)
    luks.convert_header(device, version)
    switched = 0
    for number, event in enumerate(device.log):
        if isinstance(event, Write) and (event.offset, len(event.data)) == (0, SECTOR):
            around = device.log[number - 1 : number + 2 : 2]
            assert number == 0 or all(isinstance(other, Flush) for other in around)
            states = list(crash_states(content, device.log[: number + 2], exhaustive=0, samples=1))
            there = luks.load_header(MemoryDevice(states[-1].content))
            assert there.stale_copy is None
            switched += there.version == version
    assert switched


@pytest.mark.parametrize("copy", [0, 1])
def test_l201_a_damaged_copy_is_restored_before_the_other_one_is_given_up(copy: int) -> None:
    # All material is in places of LUKS1 already, so that nothing else writes the header before.
    keyslots = tuple(range(7))
    damaged = bytearray(luks2_volume(keyslots, TIGHT))
    damaged[copy * 16384 + 5000] ^= 1
    recorded = RecordingDevice(damaged)
    luks.convert_header(recorded, 1)
    seen: set[bytes] = set()
    for state in crash_states(bytes(damaged), recorded.log, exhaustive=2, samples=1):
        digest = hashlib.sha256(state.content).digest()
        if digest not in seen:
            seen.add(digest)
            check_and_finish(state.content, 1, keyslots)


@pytest.fixture(autouse=True)
def erased_by_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal states have equal bytes, so that each is looked at once."""
    monkeypatch.setattr("os.urandom", bytes)


def before(name: str, version: int) -> tuple[bytes, tuple[int, ...]]:
    """A volume of the other version."""
    options, keyslots = LAYOUTS[name]
    make = luks2_volume if version == 1 else luks1_volume
    return make(keyslots, options), keyslots


def check_and_finish(content: bytes, version: int, keyslots: tuple[int, ...]) -> int:
    """All passphrases open what is there, and once more after the conversion is begun again."""
    device = MemoryDevice(content)
    there = check_opens(device, keyslots).version
    luks.convert_header(device, version)
    assert check_opens(device, keyslots).version == version
    assert luks.load_header(device).stale_copy is None
    if version == 1:
        assert b"SKUL\xba\xbe" not in device.content
    return there


@BOTH
def test_l201_a_power_cut_loses_no_passphrase(name: str, version: int) -> None:
    content, keyslots = before(name, version)
    device = RecordingDevice(content)
    luks.convert_header(device, version)
    seen: dict[bytes, int] = {}
    for state in crash_states(content, device.log, exhaustive=3, samples=cases(1, 64)):
        digest = hashlib.sha256(state.content).digest()
        if digest not in seen:
            seen[digest] = check_and_finish(state.content, version, keyslots)
        if state.point == len(device.log):
            assert seen[digest] == version
    assert set(seen.values()) == {1, 2}
    print(f"{name} to {version}: {len(device.log)} events, {len(seen)} states")


@BOTH
@pytest.mark.parametrize("operation", ["read", "write", "flush"])
def test_l201_a_failing_device_loses_no_passphrase(
    name: str, version: int, operation: Operation
) -> None:
    content, keyslots = before(name, version)
    seen: set[bytes] = set()
    number, step = 0, cases(3, 1) if operation == "read" else 1
    while True:
        number += step
        memory = MemoryDevice(content)
        device = WholeSectorFaults(memory, operation, number)
        try:
            luks.convert_header(device, version)
        except luks.DeviceError:
            assert device.failed == 1
        else:
            assert device.failed == 0
            break
        left = bytes(memory.content)
        digest = hashlib.sha256(left).digest()
        if digest not in seen:
            seen.add(digest)
            check_and_finish(left, version, keyslots)
    assert number > 3


@BOTH
def test_l201_an_interrupt_loses_no_passphrase(name: str, version: int) -> None:
    content, keyslots = before(name, version)
    device = MemoryDevice(content)

    def run() -> None:
        luks.convert_header(device, version)

    points = InterruptPoints(run)
    seen: set[bytes] = set()
    with collecting_what_is_new():
        for point in points.chosen(10, first=points.total // 4):
            device.content[:] = content
            with suppress(KeyboardInterrupt), points.interrupted_at(point):
                run()
            digest = hashlib.sha256(device.content).digest()
            if digest not in seen:
                seen.add(digest)
                check_and_finish(bytes(device.content), version, keyslots)
    print(f"{points}, {len(seen)} outcomes")


@pytest.mark.interop
@pytest.mark.parametrize("version", [1, 2])
def test_l201_cryptsetup_and_qemu_open_what_a_power_cut_leaves(
    version: int, tmp_path: Path
) -> None:
    """With 4000 stripes and no room, at each flush and in each half-written state of a header."""
    image = tmp_path / "image"
    keyslots = (0, 2, 7)
    options: dict[str, Any] = {"data_offset": 1052672 + 28672}
    make = luks2_volume if version == 1 else luks1_volume
    content = make(keyslots, options)
    device = RecordingDevice(content)
    luks.convert_header(device, version)
    keys = [key_file(tmp_path, SECRETS[number]) for number in keyslots]
    seen: dict[bytes, int] = {}
    for state in crash_states(content, device.log, exhaustive=1, samples=1):
        # Between the ends of the headers only erased and unused parts differ from state to state.
        digest = hashlib.sha256(state.content[:32768]).digest()
        if digest in seen:
            continue
        image.write_bytes(state.content)
        seen[digest] = luks.load_header(image).version
        for key in keys[: 1 + 2 * (len(seen) % 4 == 0)]:
            assert accepts(image, key)
        if seen[digest] == 1:
            qemu_read(image, keys[0], tmp_path / "plain")
    assert set(seen.values()) == {1, 2}
    print(f"to {version}: {len(seen)} headers")


def test_the_states_that_cryptsetup_loses_are_none_of_ours() -> None:
    """Corpus: in these states of cryptsetup's own conversion no passphrase opens any more."""
    corpus = shared_corpus()
    if corpus is None:
        pytest.skip("the corpus is not beside this checkout")
    content, lost = b"", []
    with tarfile.open(corpus / "validation/crash/luks1-convert-to-luks2.tar.xz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is None:
                continue
            data = file.read()
            if member.name.endswith("before.img"):
                content = data
            try:
                luks.open(MemoryDevice(data), b"cs-pass").close()
            except luks.StorageError:
                lost.append(member.name)
    assert len(lost) >= 2
    device = RecordingDevice(content)
    luks.convert_header(device, 2)
    seen = set()
    for state in crash_states(content, device.log, exhaustive=4, samples=8):
        digest = hashlib.sha256(state.content).digest()
        if digest not in seen:
            seen.add(digest)
            luks.open(MemoryDevice(state.content), b"cs-pass").close()
