"""C63 with files, locks and real signals: what an interrupt leaves can be opened at once."""

from __future__ import annotations

import contextlib
import gc
import random
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from blobstore.errors import PoisonedStoreError
from tests.support.interrupts import InterruptPoints, collecting_what_is_new

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

SECRET = b"passphrase"
#: Points that CI tries.
SAMPLE = 60
#: Signals that the loop of puts gets.
SIGNALS = 400


@pytest.fixture(autouse=True)
def few_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anti-forensic stripes take many bytecodes, all alike; LUKS2 leaves no choice of them."""
    monkeypatch.setattr("luks.keys.enroll.STRIPES", 2)


@pytest.mark.parametrize("kind", ["clear", "luks2", "qcow2"])
def test_c63_opening_changing_and_closing_by_path(tmp_path: Path, kind: str) -> None:
    """Nothing keeps the lock, or needs the interrupted objects, to open the image again."""
    original, image = tmp_path / "original", tmp_path / "image"
    secret = SECRET if kind == "luks2" else None
    kdf = luks.Pbkdf2("sha256", 1000) if secret else None
    blobstore.create(
        original,
        {"a": 1000, "b": 1000},
        secret,
        encrypted=secret is not None,
        image_format="qcow2" if kind == "qcow2" else "raw",
        kdf=kdf,
        free=64 << 10,
    ).close()

    def change() -> None:
        with blobstore.open(image, secret, direct=True) as store:
            store.put("a", b"new a")
            with store.transaction() as changes:
                changes.register("c", 100)
                changes.put("b", b"new b")

    shutil.copy(original, image)
    points = InterruptPoints(change)
    allowed: list[dict[str, bytes]] = [{}, {"a": b"new a"}, {"a": b"new a", "b": b"new b"}]
    chosen = points.chosen(SAMPLE)
    print(f"{kind}: {len(chosen)} of {points}")
    with collecting_what_is_new():
        for point in chosen:
            shutil.copy(original, image)
            with contextlib.suppress(KeyboardInterrupt), points.interrupted_at(point):
                change()
            gc.collect()  # frames that the interrupt left in a circle
            with blobstore.open(image, secret, direct=True) as store:
                found = {
                    name: store.get(name) for name in store if store.section(name).size is not None
                }
                assert found in allowed, f"interrupted at bytecode {point}"
                store.put("b", b"later")
                assert store.verify().ok


@contextlib.contextmanager
def _interrupting(generator: random.Random) -> Iterator[None]:
    """Send SIGALRM, which interrupts as SIGINT does, once, a random moment from now."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-5, 2e-3))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_c63_real_signals_in_a_loop_of_puts(tmp_path: Path) -> None:
    """What was acknowledged is there, whoever handles the interrupt goes on or opens again."""
    image = tmp_path / "image"
    generator = random.Random(1)
    store = blobstore.create(image, {"counter": 2000}, encrypted=False)
    acknowledged = interrupts = 0
    store.put("counter", b"0")
    while interrupts < SIGNALS:
        try:
            with _interrupting(generator):
                for _ in range(100):
                    store.put("counter", b"%d" % (acknowledged + 1))
                    acknowledged += 1
        except KeyboardInterrupt:
            interrupts += 1
            if store._session.container.writer.poisoned:
                with pytest.raises(PoisonedStoreError):
                    store.get("counter")
                store.close()
                store = blobstore.open(image, direct=True)
            found = int(store.get("counter"))
            assert found in (acknowledged, acknowledged + 1)
            acknowledged = found
    store.close()
    with blobstore.open(image, direct=True) as store:
        assert int(store.get("counter")) == acknowledged
        assert store.verify().ok
