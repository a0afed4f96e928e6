"""A run of steps lets threads in that wait for the payload."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import luks
from tests.luks.reencryption_support import KIB, options, volume
from tests.luks.support import PASSPHRASE, pattern

if TYPE_CHECKING:
    import pytest


def test_a_thread_that_waits_for_the_payload_gets_it_between_two_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the pause the thread that runs took the lock again at once, for seconds."""
    image, _ = volume(pattern("x", 48 * KIB)).devices()
    seen: list[int] = []

    def pause(seconds: float) -> None:
        assert 0 < seconds < 0.01
        position = running.status.position
        user = threading.Thread(target=running.volume.write, args=(0, b"%d" % position))
        user.start()
        user.join(10)
        assert not user.is_alive()
        seen.append(position)

    with luks.begin_reencryption(image, PASSPHRASE, options=options()) as running:
        monkeypatch.setattr("luks.reencryption.interface.time.sleep", pause)
        running.run()
    assert seen == [16 * KIB, 32 * KIB, 48 * KIB]
    with luks.open(image, PASSPHRASE) as opened:
        assert opened.read(0, 5) == b"49152"
