"""Power cuts and failing devices while headers are written."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import pytest

import luks
from formats.devices.device import MemoryDevice
from formats.devices.file import FileDevice
from formats.frozen import replace
from luks.header.writer import write_header
from luks.keys.enroll import enroll_key
from tests.luks.support import (
    KEY,
    OTHER,
    PASSPHRASE,
    PBKDF2,
    SMALL,
    Template,
    known_volume,
    template,
)
from tests.support.devices import FaultyDevice, RecordingDevice, crash_states

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.devices import Operation


#: What may be found after a crash: no header, one that is damaged, or a volume.
Found = Literal["nothing", "damaged", "old", "new"]


def outcome(content: bytes) -> Found:
    """Say what a crash left; a header that opens for neither passphrase is a failure."""
    device = MemoryDevice(content)
    try:
        luks.load_header(device)
    except (luks.EmptyImageError, luks.ForeignImageError):
        return "nothing"
    except luks.FormatError:
        return "damaged"
    results: tuple[tuple[bytes, Found], ...] = ((PASSPHRASE, "new"), (OTHER, "old"))
    for secret, found in results:
        try:
            luks.open(device, secret).close()
        except luks.NoKeyslotMatchError:
            continue
        return found
    pytest.fail("a header without a passphrase")


def old_volume(version: int, **options: Any) -> bytes:
    device = MemoryDevice(0)
    defaults: dict[str, Any] = {} if version == 1 else dict(SMALL)
    defaults.update(options, key_size=32, size=64 << 10)
    luks.format(device, OTHER, version=version, kdf=PBKDF2, **defaults).close()
    # Room for either version.
    return bytes(device.content) + bytes((2 << 20) + (64 << 10) - device.size)


def record(before: bytes, version: int) -> RecordingDevice:
    device = RecordingDevice(before)
    defaults: dict[str, Any] = {"key_size": 32} if version == 1 else dict(SMALL)
    luks.format(
        device, PASSPHRASE, version=version, kdf=PBKDF2, overwrite=any(before), **defaults
    ).close()
    return device


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("before", ["blank", "luks1", "luks2", "luks2-64k"])
def test_formatting_leaves_nothing_or_a_whole_volume(version: int, before: str) -> None:
    """L10 to L13: before the last flush only the old header opens, after it only the new one."""
    content = {
        "blank": lambda: bytes((2 << 20) + (64 << 10)),
        "luks1": lambda: old_volume(1),
        "luks2": lambda: old_volume(2),
        "luks2-64k": lambda: old_volume(2, metadata_size=65536, data_offset=None),
    }[before]()
    device = record(content, version)
    outcomes: dict[bytes, Found] = {}  # by digest: three of four states are like another
    for state in crash_states(content, device.log, samples=16):
        digest = hashlib.sha256(state.content).digest()
        if digest not in outcomes:
            outcomes[digest] = outcome(state.content)
        if state.point == len(device.log):
            assert outcomes[digest] == "new"
    found = set(outcomes.values())
    expected: set[Found] = {"nothing", "new"} if before == "blank" else {"old", "nothing", "new"}
    # A torn LUKS2 copy has its magic, but no valid checksum: no program opens it.
    assert found - {"damaged"} == expected
    if before == "blank" and version == 1:
        assert "damaged" not in found


def test_an_old_volume_keeps_its_keys_until_it_is_no_volume_any_more() -> None:
    """L13: the old header is gone, durably, before its keyslots are."""
    content = old_volume(2)
    device = record(content, 2)
    first_flush = next(i for i, event in enumerate(device.log) if not hasattr(event, "data"))
    before = {write.offset for write in device.log[:first_flush] if hasattr(write, "offset")}
    assert before == {0, 16384}


@cache
def volume(version: int) -> Template:
    """A volume that `OTHER` opens, with room for another keyslot."""
    return known_volume(version, keyslots_size=256 << 10)


def added(header: luks.Header) -> tuple[luks.Header, dict[int, bytes]]:
    return enroll_key(header, 1, kdf=PBKDF2, secret=PASSPHRASE, key=KEY, hash_name="sha256")


def stale(base: Template, which: int | None) -> MemoryDevice:
    """The volume with one copy damaged."""
    device = base.copy()
    if which is not None:
        device.content[which * 16384 + 5000] ^= 1
    return device


@pytest.mark.parametrize("which", [None, 0, 1])
def test_a_new_luks2_keyslot_is_there_or_not_and_the_old_one_always(which: int | None) -> None:
    """L11: also when it is written over a header of which one copy is damaged."""
    before = bytes(stale(volume(2), which).content)
    device = RecordingDevice(before)
    header = luks.load_header(device)
    assert header.stale_copy == which
    written = write_header(device, *added(header))
    assert written == luks.load_header(device)
    assert (written.seqid, written.stale_copy) == (header.seqid + 1, None)
    assert luks.load_header(device).stale_copy is None
    results = set()
    for state in crash_states(before, device.log, samples=4):
        old, new = _opens(state.content, OTHER), _opens(state.content, PASSPHRASE)
        assert old
        results.add(new)
        if state.point == len(device.log):
            assert new
    assert results == {True, False}


@pytest.mark.parametrize("number", [1, 6, 7])
def test_a_new_luks1_keyslot_is_there_or_not_and_the_old_one_always(number: int) -> None:
    """L12: slot 6 lies across the two sectors of the header, slot 7 in the second."""
    before = bytes(volume(1).device.content)
    device = RecordingDevice(before)
    header, material = enroll_key(
        luks.load_header(device),
        number,
        kdf=PBKDF2,
        secret=PASSPHRASE,
        key=KEY,
        hash_name="sha256",
    )
    write_header(device, header, material)
    results = set()
    for state in crash_states(before, device.log, samples=4):
        assert _opens(state.content, OTHER)
        results.add(_opens(state.content, PASSPHRASE))
    assert results == {True, False}


def _opens(content: bytes, secret: bytes) -> bool:
    try:
        luks.open(MemoryDevice(content), secret).close()
    except luks.NoKeyslotMatchError:
        return False
    return True


def _each_failure(run: Callable[[FaultyDevice], object], content: bytes) -> list[bytes]:
    """Fail each operation in turn, once and permanently; return the results."""
    left = []
    operations: tuple[Operation, ...] = ("read", "write", "flush")
    for operation in operations:
        for persistent in (False, True):
            number = 0
            while True:
                number += 1
                memory = MemoryDevice(content)
                device = FaultyDevice(memory, operation, number, persistent=persistent)
                try:
                    run(device)
                except luks.DeviceError:
                    assert device.failed
                    left.append(bytes(memory.content))
                else:
                    assert device.failed == 0
                    break
    return left


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("over", [False, True])
def test_a_failing_device_leaves_no_half_volume(version: int, over: bool) -> None:
    content = old_volume(2) if over else bytes((2 << 20) + (64 << 10))
    options: dict[str, Any] = {"key_size": 32} if version == 1 else dict(SMALL)

    def run(device: FaultyDevice) -> None:
        luks.format(
            device, PASSPHRASE, version=version, kdf=PBKDF2, overwrite=over, **options
        ).close()

    left = _each_failure(run, content)
    assert len(left) > 10
    assert {outcome(state) for state in left} >= {"nothing", "new"}


@pytest.mark.parametrize("version", [1, 2])
def test_a_failing_device_loses_no_keyslot(version: int) -> None:
    content = bytes(volume(version).device.content)

    def run(device: FaultyDevice) -> None:
        write_header(device, *added(luks.load_header(device)))

    for state in _each_failure(run, content):
        if version == 1 and not _loads(state):
            continue  # half a sector: L12 relies on sectors being written whole
        assert _opens(state, OTHER)


def _loads(content: bytes) -> bool:
    try:
        luks.load_header(MemoryDevice(content))
    except luks.FormatError:
        return False
    return True


@pytest.mark.parametrize("operation", ["read", "write", "flush"])
@pytest.mark.parametrize("number", range(1, 9))
def test_a_path_that_fails_is_not_there(
    operation: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"read": "read_into", "write": "write", "flush": "flush"}[operation]
    real, calls = getattr(FileDevice, name), 0

    def fail(device: FileDevice, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise luks.DeviceError("injected")
        real(device, *arguments)

    monkeypatch.setattr(FileDevice, name, fail)
    try:
        luks.format(tmp_path / "image", PASSPHRASE, size=4096, kdf=PBKDF2, **SMALL).close()
    except luks.DeviceError:
        assert calls == number
        assert list(tmp_path.iterdir()) == []
    else:
        assert calls < number
        assert list(tmp_path.iterdir()) == [tmp_path / "image"]


def test_opening_reports_a_failing_device() -> None:
    content = bytes(volume(2).device.content)
    for number in range(1, 20):
        device = FaultyDevice(MemoryDevice(content), "read", number)
        try:
            luks.open(device, OTHER).close()
        except luks.DeviceError:
            assert device.failed == 1
        else:
            assert device.failed == 0
            break
    else:
        pytest.fail("it reads too often")


def test_a_counter_at_its_end_is_refused_before_anything_is_written() -> None:
    base = template()
    device = RecordingDevice(base.device.content)
    header = replace(base.header, seqid=2**64 - 1)
    with pytest.raises(luks.LuksHeaderError, match="counter"):
        write_header(device, header, {32768: b"x"})
    assert device.log == []


def test_a_header_that_we_would_refuse_is_not_written() -> None:
    base = template()
    device = RecordingDevice(base.device.content)
    digest = replace(base.header.digests[0], value=b"")
    for header in (
        replace(base.header, digests={0: digest}),
        replace(base.header, digests={}),
        replace(base.header, keyslots_size=4096),
    ):
        with pytest.raises(luks.LuksHeaderError):
            write_header(device, header, {32768: b"x"})
    large = luks.Token("acme", (), {"data": "x" * 12288})
    with pytest.raises(luks.LuksHeaderError, match="do not fit"):
        write_header(device, replace(base.header, tokens={0: large}), {})
    assert device.log == []
