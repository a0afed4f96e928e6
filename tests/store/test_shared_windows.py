"""Several users of one window (O63, O64)."""

from __future__ import annotations

import pytest

from blobstore.errors import PoisonedStoreError
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError
from tests.support.devices import FaultyDevice, RecordingDevice
from tests.support.stores import open_store
from tests.support.windows import manual_alarms, window_image

SIZE = 5000


@pytest.fixture(autouse=True)
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    manual_alarms(monkeypatch)


def test_users_see_what_others_write_o63() -> None:
    device = RecordingDevice(window_image(SIZE))
    store = open_store(device)
    first, second = store.shared_window("w"), store.shared_window("w")
    first.write(3, b"first")
    assert second.read(3, 5) == b"first"
    second.write(8, b"second", fua=True)
    assert store.get("w")[3:14] == b"firstsecond"
    first.discard(3, 5)
    second.flush()
    assert store.get("w")[3:14] == b"\0\0\0\0\0second"
    assert (first.size, first.name, first.block_size) == (SIZE, "w", 512)
    assert not first.read_only
    assert not first.in_place


def test_it_is_closed_after_the_last_user_o63() -> None:
    store = open_store(window_image(SIZE))
    first, second = store.shared_window("w"), store.shared_window("w")
    first.write(0, b"1")
    first.close()
    first.close()
    assert store.get("w")[:1] == b"1"
    for use in (
        lambda: first.read(0, 1),
        lambda: first.write(0, b""),
        lambda: first.discard(0, 1),
        first.flush,
    ):
        with pytest.raises(ValueError, match="window was closed"):
            use()
    with pytest.raises(ValueError, match="has an open window"):
        store.put("w", b"")
    second.write(1, b"2")
    second.close()
    assert store.get("w")[:2] == b"12"
    store.put("w", b"")


def test_one_that_is_not_shared_stays_so_o63() -> None:
    store = open_store(window_image(SIZE))
    with store.window("w"), pytest.raises(ValueError, match="has an open window"):
        store.shared_window("w")
    with store.shared_window("w"):
        with pytest.raises(ValueError, match="has an open window"):
            store.window("w")
        with store.shared_window("w"):
            pass
        with pytest.raises(ValueError, match="has an open window"):
            store.put("w", b"")
    store.put("w", b"")


def test_it_ends_with_its_store_o63() -> None:
    store = open_store(window_image(SIZE))
    first, second = store.shared_window("w"), store.shared_window("w")
    first.write(0, b"1")
    store.close()
    for window in (first, second):
        with pytest.raises(ValueError, match="was closed"):
            window.read(0, 1)
        window.close()
        window.close()


def test_a_transaction_keeps_it_open_o63() -> None:
    store = open_store(window_image(SIZE))
    first, second = store.shared_window("w"), store.shared_window("w")
    first.write(0, b"1")
    with store.transaction():
        for window in (first, second):
            with pytest.raises(ValueError, match="transaction is under way"):
                window.close()
    first.close()
    second.close()
    assert store.get("w")[:1] == b"1"


@pytest.mark.parametrize("operation", ["write", "flush"])
def test_no_flush_confirms_what_is_not_durable_o64(operation: str) -> None:
    """A commit in the background fails: every user's next flush says so, as does closing."""
    device = FaultyDevice(
        MemoryDevice(window_image(SIZE)),
        operation,  # type: ignore[arg-type]
        1 << 30,
        persistent=True,
    )
    store = open_store(device)
    device._number = 0
    first, second, third = (store.shared_window("w") for _ in range(3))
    first.write(0, b"1")
    alarm = first._window._alarm  # type: ignore[attr-defined]
    assert alarm.advance(1000) is None
    assert device.failed > 0
    with pytest.raises(DeviceError, match="injected"):
        second.flush()
    for _ in range(2):
        with pytest.raises(PoisonedStoreError):
            first.flush()
        with pytest.raises(PoisonedStoreError):
            third.flush()
    for window in (first, second, third):
        with pytest.raises(PoisonedStoreError):
            window.close()
        window.close()
