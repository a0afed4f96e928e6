"""Power cuts, failing devices and interrupts while a LUKS1 volume gets another key."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import luks
from formats.devices.device import MemoryDevice
from tests.luks.reencryption_support import Case, Content, options
from tests.luks.support import PASSPHRASE, PBKDF2
from tests.support.devices import WholeSectorFaults
from tests.support.effort import cases
from tests.support.interrupts import InterruptPoints, collecting_what_is_new

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from tests.support.devices import Operation

pytestmark = pytest.mark.slow

KIB = 1 << 10
#: Of the journal; the smallest that has room for the keyslots.
JOURNAL = 228 * KIB
KEYS = bytes(range(16)), bytes(range(16, 32))


@pytest.fixture(autouse=True)
def small_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luks.reencryption.luks1._JOURNAL_SIZE", JOURNAL)
    monkeypatch.setattr("luks.reencryption.luks1._RECORD_SIZE", 16 * KIB)


def made(plain: bytes) -> Content:
    """A LUKS1 volume and a blank device for its journal."""
    image = MemoryDevice(0)
    with luks.format(
        image,
        PASSPHRASE,
        version=1,
        cipher="aes-cbc-plain64",
        volume_key=KEYS[0],
        key_size=16,
        data_offset=516 * KIB,
        size=len(plain),
        kdf=PBKDF2,
    ) as volume:
        volume.write(0, plain)
    with luks.edit(image) as header:
        # The header is written in two sectors: this keyslot is in the second one.
        header.unlock(PASSPHRASE)
        header.add_keyslot(PASSPHRASE, keyslot=7, kdf=PBKDF2)
        header.remove_keyslot(0)
    return Content(bytes(image.content), bytes(JOURNAL))


def begin(image: BlockDevice, journal: BlockDevice | None, /) -> luks.Reencryption:
    return luks.begin_reencryption(
        image, PASSPHRASE, options=options(journal=journal, volume_key=KEYS[1])
    )


CASE = Case("luks1", made, begin, 32 * KIB)


def check_and_finish(content: Content) -> str:
    """Resume what is there, if something is; the payload is right, and the header LUKS1."""
    image, journal = content.devices()
    assert journal is not None
    found = "ended or not begun"
    try:
        luks.open(image, PASSPHRASE).close()
    except luks.UnfinishedReencryptionError:
        found = "begun"
    status = luks.reencryption_status(image, journal=journal)
    if status is None:
        assert found != "begun"
    else:
        with luks.resume_reencryption(
            image, PASSPHRASE, options=options(journal=journal)
        ) as running:
            running.run()
    with luks.open(image, PASSPHRASE) as volume:
        assert volume.header.version == 1
        assert volume.read(0, CASE.size) == CASE.plain
    return found


def test_l210_a_power_cut_loses_no_byte() -> None:
    seen: dict[bytes, str] = {}
    for content, complete in CASE.recorded.states(samples=cases(1, 16)):
        mark = hashlib.sha256(content.image + (content.header or b"")).digest()
        if mark not in seen:
            seen[mark] = check_and_finish(content)
        if complete:
            assert content.header is not None
            assert luks.load_header(MemoryDevice(content.image)).version == 1
            assert not luks.is_luks(MemoryDevice(content.header))
    assert set(seen.values()) == {"begun", "ended or not begun"}
    print(f"{len(seen)} states")


@pytest.mark.parametrize("which", ["image", "journal"])
@pytest.mark.parametrize("operation", ["read", "write", "flush"])
def test_l210_a_failing_device_loses_no_byte(which: str, operation: Operation) -> None:
    """The step is taken again where it can be, else the image is resumed."""
    step = cases(4, 1)
    for again in (False, True):
        number = 1 + again
        while True:
            image, journal = CASE.before.devices()
            assert journal is not None
            devices: dict[str, BlockDevice] = {"image": image, "journal": journal}
            faulty = devices[which] = WholeSectorFaults(devices[which], operation, number)
            try:
                with begin(devices["image"], devices["journal"]) as running:
                    try:
                        running.run()
                    except luks.DeviceError:
                        if not again:
                            raise
                        running.run()
            except luks.DeviceError:
                assert faulty.failed
            if not faulty.failed:
                break
            check_and_finish(Content(bytes(image.content), bytes(journal.content)))
            number += step
        assert number > step


def test_l210_an_interrupt_loses_no_byte() -> None:
    image, journal = CASE.before.devices()
    assert journal is not None

    def run() -> None:
        with begin(image, journal) as running:
            running.run()

    points = InterruptPoints(run)
    with collecting_what_is_new():
        for point in points.chosen(12, first=points.total // 5):
            image.content[:] = CASE.before.image
            journal.content[:] = CASE.before.header or b""
            with suppress(KeyboardInterrupt), points.interrupted_at(point):
                run()
            check_and_finish(Content(bytes(image.content), bytes(journal.content)))
    print(points)
