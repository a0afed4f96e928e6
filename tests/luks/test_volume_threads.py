"""A volume in several threads: whole sectors, and no use of a wiped key."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

import luks
from formats.devices.device import MemoryDevice, SliceDevice
from tests.luks.support import PASSPHRASE
from tests.luks.test_volume import SIZE, base, segment


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_threads_may_share_a_sector(sector_size: int) -> None:
    """Each thread owns bytes that are interleaved with those of the others."""
    device = segment(SliceDevice(MemoryDevice(4096 + SIZE), 0, 4096 + SIZE), sector_size)
    device.write(0, bytes(SIZE))
    failures: list[str] = []

    def use(owner: int) -> None:
        generator = random.Random(owner)
        for _ in range(150):
            offset = generator.randrange(0, 4096 // 64) * 64 + owner * 16
            data = generator.randbytes(16)
            device.write(offset, data)
            if device.read(offset, 16) != data:
                failures.append(f"thread {owner} at {offset}")

    threads = [threading.Thread(target=use, args=(owner,)) for owner in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_l72_a_sector_is_never_seen_half_written() -> None:
    """A reader beside a writer gets the old sector or the new one, in whole."""
    torn, go_on = threading.Event(), threading.Event()

    class Tearing(MemoryDevice):
        """Stores the first 8 bytes of a write, and the rest when it is told to."""

        def write(self, offset: int, data: Any, /) -> None:
            super().write(offset, bytes(data[:8]))
            torn.set()
            assert go_on.wait(10)
            super().write(offset, data)

    memory = Tearing(4096 + SIZE)
    device = segment(memory, 512)
    got = []
    writer = threading.Thread(target=device.write, args=(0, b"x" * 512))
    reader = threading.Thread(target=lambda: got.append(device.read(0, 512)))
    writer.start()
    assert torn.wait(10)
    reader.start()
    reader.join(0.05)
    go_on.set()
    writer.join()
    reader.join()
    assert got == [b"x" * 512]


def test_closing_waits_for_a_write_under_way() -> None:
    """Otherwise its sectors would be encrypted with a wiped key."""
    entered, go_on = threading.Event(), threading.Event()

    class Slow(MemoryDevice):
        slow = False

        def write(self, offset: int, data: Any, /) -> None:
            if self.slow:
                entered.set()
                assert go_on.wait(10)
            super().write(offset, data)

    device = Slow(base().device.content)
    volume = luks.open(device, PASSPHRASE, read_only=False)
    device.slow = True
    writer = threading.Thread(target=volume.write, args=(0, b"x" * 4096))
    closer = threading.Thread(target=volume.close)
    writer.start()
    assert entered.wait(10)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    go_on.set()
    writer.join()
    closer.join()
    with luks.open(device, PASSPHRASE) as again:
        assert again.read(0, 4096) == b"x" * 4096


def test_nothing_is_read_with_a_wiped_key() -> None:
    """A reader that a close overtakes is told so, and gets no garbage."""
    entered, go_on = threading.Event(), threading.Event()

    class Slow(MemoryDevice):
        slow = False

        def read_into(self, offset: int, buffer: Any, /) -> None:
            super().read_into(offset, buffer)
            if self.slow:
                entered.set()
                assert go_on.wait(10)

    device = Slow(base().device.content)
    volume = luks.open(device, PASSPHRASE)
    device.slow = True
    failures: list[Exception] = []

    def read() -> None:
        try:
            volume.read(0, 4096)
        except ValueError as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    closer = threading.Thread(target=volume.close)
    reader.start()
    assert entered.wait(10)
    volume._segments[0]._closed = True  # as `close` does once the device has answered
    closer.start()
    go_on.set()
    reader.join()
    closer.join()
    assert [str(error) for error in failures] == ["the segment is closed"]
