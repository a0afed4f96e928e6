"""O206: whatever a crash leaves opens by one of two policies, or says that it is to be resumed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import luks
from blobstore.container.initialise import container_size, initialise
from blobstore.container.scan import looks_like_container, read_header_copies
from blobstore.image.markers import require_not_being_encrypted
from blobstore.reencryption.running import ImageReencryption, protect_store
from blobstore.store.store import Store
from formats.devices.device import MemoryDevice, SliceDevice
from formats.errors import UnsupportedError
from tests.support.devices import RecordingDevice, crash_states
from tests.support.effort import cases
from tests.support.stores import contents, image, spec

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from tests.support.devices import CrashState
    from tests.support.stores import Contents

SECRET = b"passphrase"
QUICK = luks.Pbkdf2("sha256", 1000)
ZONE = 64 << 10
HEADER_SIZE = 2 << 20
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


class Ends:
    """An image with its header attached, or both on one device, so that a crash hits both."""

    def __init__(self, device: MemoryDevice | RecordingDevice, *, apart: bool) -> None:
        self.image: BlockDevice = device
        self.header: BlockDevice | None = None
        if apart:
            self.header = SliceDevice(device, 0, HEADER_SIZE)
            self.image = SliceDevice(device, HEADER_SIZE, device.size - HEADER_SIZE)

    @property
    def status(self) -> luks.ReencryptionStatus | None:
        try:
            return luks.reencryption_status(self.image, header=self.header)
        except (luks.ForeignImageError, luks.EmptyImageError):
            return None
        except luks.LuksHeaderError:
            # A new file with a header appears whole; what is here is a part of a device.
            assert looks_like_container(self.image)
            return None


def begin_reencryption(ends: Ends) -> luks.Reencryption:
    options = luks.ReencryptionOptions(kdf=QUICK, hotzone_size=ZONE)
    return luks.begin_reencryption(ends.image, SECRET, header=ends.header, options=options)


def begin_encryption(ends: Ends) -> luks.Reencryption:
    return luks.begin_encryption(
        ends.image,
        SECRET,
        header=ends.header,
        format_options=luks.FormatOptions(kdf=QUICK, sector_size=512, keyslots_size=1 << 20),
        options=luks.ReencryptionOptions(hotzone_size=ZONE),
    )


def begin_decryption(ends: Ends) -> luks.Reencryption:
    options = luks.ReencryptionOptions(hotzone_size=ZONE)
    return luks.begin_decryption(ends.image, SECRET, header=ends.header, options=options)


def resume(ends: Ends) -> None:
    options = luks.ReencryptionOptions(hotzone_size=ZONE)
    carried_on(luks.resume_reencryption(ends.image, SECRET, header=ends.header, options=options))


def stored(ends: Ends) -> tuple[bool, Contents]:
    """Return whether the store is encrypted, and what it holds; no exception to the policy."""
    with ExitStack() as stack:
        payload, encrypted = ends.image, not looks_like_container(ends.image)
        if encrypted:
            payload = stack.enter_context(luks.open(ends.image, SECRET, header=ends.header))
        else:
            require_not_being_encrypted(payload)
        store = Store.on_device(payload, encrypted=encrypted, with_secret=encrypted, read_only=True)
        assert store.verify().ok
        return encrypted, contents(store)


def start(mode: str) -> tuple[bytes, bool]:
    """Return what there is before a run, and whether the header is apart."""
    if mode == "reencrypt":
        return volume_with_store(), False
    plain = image(SPECS, free=256 << 10, block_size=512, encrypted=False)
    if mode == "encrypt":
        return plain, False
    device = MemoryDevice(bytes(HEADER_SIZE) + plain)
    if mode == "decrypt detached":
        carried_on(begin_encryption(Ends(device, apart=True)))
    return bytes(device.content), True


BEGINNINGS = {
    "reencrypt": begin_reencryption,
    "encrypt": begin_encryption,
    "encrypt detached": begin_encryption,
    "decrypt detached": begin_decryption,
}


@pytest.mark.parametrize("mode", BEGINNINGS)
def test_o206_a_crash_at_any_instant_of_a_whole_run(mode: str) -> None:
    before, apart = start(mode)
    _, expected = stored(Ends(MemoryDevice(before), apart=apart))
    recording = RecordingDevice(before, resizable=True)
    carried_on(BEGINNINGS[mode](Ends(recording, apart=apart)))
    is_encrypted, found = stored(Ends(MemoryDevice(recording.content), apart=apart))
    assert found == expected
    assert is_encrypted is not mode.startswith("decrypt")
    states: list[CrashState] = []
    seen: set[int] = set()
    for state in crash_states(before, recording.log, exhaustive=1, samples=cases(1, 8)):
        if (digest := hash(state.content)) not in seen:
            seen.add(digest)
            states.append(state)
    counts = {"before": 0, "in progress": 0, "after": 0}
    every = max(len(states) // 8, 1)
    for number, state in enumerate(states):
        ends = Ends(MemoryDevice(state.content), apart=apart)
        status = ends.status
        if status is not None:
            counts["in progress"] += 1
            if number % cases(every, 1):
                continue
            resume(ends)
            assert stored(ends) == (is_encrypted, expected)
            continue
        counts["after" if counts["in progress"] else "before"] += 1
        assert stored(ends)[1] == expected
    assert min(counts.values()) > 0, counts


def test_o203_a_store_in_the_middle_of_it_is_refused_with_what_to_do() -> None:
    before, _ = start("reencrypt")
    recording = RecordingDevice(before)
    carried_on(begin_reencryption(Ends(recording, apart=False)))
    refused = 0
    for state in crash_states(before, recording.log, exhaustive=0, samples=1):
        ends = Ends(MemoryDevice(state.content), apart=False)
        status = ends.status
        if status is None or status.needs_recovery or status.size - status.position > ZONE:
            continue
        with luks.open(ends.image, SECRET) as volume:
            _, attesting = read_header_copies(volume)
        if not any(copy and copy.incompatible for copy in attesting):
            continue
        with pytest.raises(UnsupportedError, match="O203") as error:
            stored(ends)
        assert "--resume" in (error.value.hint or "")
        refused += 1
        if refused > 2:
            break
    assert refused
