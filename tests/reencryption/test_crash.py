"""O206: whatever a crash leaves opens by one of two policies, or says that it is to be resumed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import luks
from blobstore.container.initialise import container_size, initialise
from blobstore.reencryption.running import ImageReencryption, protect_store
from blobstore.store.store import Store
from formats.devices.device import MemoryDevice
from formats.errors import UnsupportedError
from tests.support.devices import RecordingDevice, crash_states
from tests.support.effort import cases
from tests.support.stores import contents, spec

if TYPE_CHECKING:
    from tests.support.devices import CrashState
    from tests.support.stores import Contents

SECRET = b"passphrase"
QUICK = luks.Pbkdf2("sha256", 1000)
ZONE = 64 << 10
SPECS = [spec("a", 9000, b"old a" * 1000), spec("b", 700, b"old b"), spec("never", 100)]


@pytest.fixture(autouse=True)
def few_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anti-forensic stripes take most of the time, and are not what this is about."""
    monkeypatch.setattr("luks.keys.enroll.STRIPES", 2)


def volume_with_store() -> bytes:
    """Return a small LUKS2 image with a store in it."""
    options = luks.FormatOptions(
        kdf=QUICK, sector_size=512, keyslots_size=1 << 20, data_offset=2 << 20
    )
    size = container_size(SPECS, block_size=512, free=256 << 10)
    device = MemoryDevice((2 << 20) + size)
    with luks.format(device, SECRET, options, overwrite=True) as volume:
        initialise(volume, SPECS, encrypted=True, block_size=512)
        with Store.on_device(volume, encrypted=True) as store:
            store.put("a", b"new a" * 1500)
    return bytes(device.content)


def carried_on(moving: luks.Reencryption) -> None:
    """Carry on as `blobstore.reencrypt` does, on a device in memory."""
    mode = moving.status.mode

    def protect() -> None:
        protect_store(moving.volume, encrypted=mode != "decrypt", new_key=mode == "reencrypt")

    resources = ExitStack()
    resources.callback(moving.close)
    with ImageReencryption(moving, resources, zone=ZONE, protect=protect) as running:
        running.run()


def reencrypted(device: MemoryDevice | RecordingDevice) -> None:
    options = luks.ReencryptionOptions(kdf=QUICK, hotzone_size=ZONE)
    carried_on(luks.begin_reencryption(device, SECRET, options=options))


def resumed(device: MemoryDevice) -> None:
    options = luks.ReencryptionOptions(hotzone_size=ZONE)
    carried_on(luks.resume_reencryption(device, SECRET, options=options))


def stored(device: MemoryDevice) -> Contents:
    """Return what the store holds, which opens without any exception to the policy."""
    with luks.open(device, SECRET) as volume:
        store = Store.on_device(volume, encrypted=True, with_secret=True, read_only=True)
        assert store.verify().ok
        return contents(store)


def test_o206_a_crash_at_any_instant_of_a_whole_run() -> None:
    before = volume_with_store()
    expected = stored(MemoryDevice(before))
    recording = RecordingDevice(before)
    reencrypted(recording)
    assert stored(MemoryDevice(recording.content)) == expected
    states: list[CrashState] = []
    seen: set[bytes] = set()
    for state in crash_states(before, recording.log, exhaustive=2, samples=cases(2, 8)):
        if state.content not in seen:
            seen.add(state.content)
            states.append(state)
    counts = {"before": 0, "in progress": 0, "after": 0}
    for number, state in enumerate(states):
        device = MemoryDevice(state.content)
        if luks.reencryption_status(device) is None:
            name = "after" if counts["in progress"] else "before"
            counts[name] += 1
            assert stored(device) == expected
            continue
        counts["in progress"] += 1
        if number % cases(13, 1):
            continue
        resumed(device)
        assert luks.reencryption_status(device) is None
        assert stored(device) == expected
    assert min(counts.values()) > 0, counts


def test_o203_a_store_in_the_middle_of_it_is_refused_with_what_to_do() -> None:
    before = volume_with_store()
    recording = RecordingDevice(before)
    reencrypted(recording)
    refused = 0
    for state in crash_states(before, recording.log, exhaustive=0, samples=1):
        device = MemoryDevice(state.content)
        status = luks.reencryption_status(device)
        if status is None or status.needs_recovery or status.size - status.position > ZONE:
            continue
        try:
            stored(device)
        except UnsupportedError as error:
            assert "--resume" in (error.hint or "")  # noqa: PT017  others open
            refused += 1
    assert refused
