"""C63, C65: an interrupt while an image changes hands leaves one owner, and nothing is lost.

A store writes only while it holds the lock: whatever interrupts `Store.release` and
`Store.take_over`, either it has the lock and goes on, or it has released the image and says so.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest

import blobstore
import luks
from blobstore.errors import PoisonedStoreError
from formats.errors import DeviceBusyError, DeviceError, ReadOnlyError
from tests.support.interrupts import InterruptPoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = b"passphrase"
#: Points of each call that CI tries, and how many at its beginning and end it tries always:
#: there the lock is taken or given up, and the store's own idea of it changes.
SAMPLE, ENDS = 20, 40


@pytest.fixture(autouse=True)
def few_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anti-forensic stripes take many bytecodes, all alike; LUKS2 leaves no choice of them."""
    monkeypatch.setattr("luks.keys.enroll.STRIPES", 2)


class Case(NamedTuple):
    """A call, and what comes before it; both take the store and the image's path."""

    call: Callable[[blobstore.Store], object]
    prepare: Callable[[blobstore.Store, Path, bytes | None], object]


def _elsewhere(store: blobstore.Store, path: Path, secret: bytes | None) -> None:
    """Let another process change the image, which grows."""
    store.release()
    with blobstore.open(path, secret, direct=True) as other:
        other.put("a", b"theirs")
        other.register("c", 100_000)


def _unclean(store: blobstore.Store, path: Path, secret: bytes | None) -> None:
    """Let another process end without closing its store: taking over has to recover it."""
    store.release()
    other = blobstore.open(path, secret, direct=True)
    other.put("a", b"theirs")
    other._session.resources.close()


def _there_and_back(store: blobstore.Store) -> None:
    store.release()
    store.take_over()


CASES = {
    "release": Case(lambda store: store.release(), lambda store, *_: store.put("a", b"theirs")),
    "take over": Case(lambda store: store.take_over(), _elsewhere),
    "recover": Case(lambda store: store.take_over(), _unclean),
    "there and back": Case(_there_and_back, lambda store, *_: store.put("a", b"theirs")),
}
#: Of these, an interrupt may leave a released image locked until it is released again.
RELEASING = ("release", "there and back")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("clear", name) for name in CASES),
        *(("luks2", name) for name in ("release", "take over")),
        *(("qcow2", name) for name in ("take over", "recover")),
    ],
)
def test_c65_an_interrupt_while_an_image_changes_hands(
    tmp_path: Path, kind: str, name: str
) -> None:
    original, image = tmp_path / "original", tmp_path / "image"
    secret = SECRET if kind == "luks2" else None
    blobstore.create(
        original,
        {"a": 1000, "b": 1000},
        secret,
        encrypted=secret is not None,
        image_format="qcow2" if kind == "qcow2" else "raw",
        kdf=luks.Pbkdf2("sha256", 1000) if secret else None,
    ).close()
    case = CASES[name]

    def prepared() -> blobstore.Store:
        shutil.copy(original, image)
        store = blobstore.open(image, secret, direct=True)
        case.prepare(store, image, secret)
        return store

    store = prepared()
    points = InterruptPoints(lambda: case.call(store))
    store.close()
    last = points.total
    chosen = {
        *points.chosen(SAMPLE),
        *points.chosen(ENDS, 1, min(ENDS, last)),
        *points.chosen(ENDS, max(1, last - ENDS), last),
    }
    print(f"{kind}, {name}: {len(chosen)} of {points}")
    outcomes = set()
    for point in sorted(chosen):
        store = prepared()
        with suppress(KeyboardInterrupt), points.interrupted_at(point):
            case.call(store)
        where = f"interrupted at {point}"
        outcomes.add(_check(store, image, secret, where, needs_release=name in RELEASING))
    assert "released" in outcomes
    permitted = {"released", "held"} | ({"refused"} if name != "take over" else set())
    assert outcomes <= permitted | ({"open again"} if kind == "qcow2" else set())


def _check(
    store: blobstore.Store, path: Path, secret: bytes | None, where: str, *, needs_release: bool
) -> str:
    """Let the image change hands twice more; return what the interrupt left."""
    written = {"a": b"theirs"}
    outcome = "held"
    with suppress(PoisonedStoreError):
        assert store.get("a") == b"theirs", where
    try:
        store.put("b", b"mine")
        written["b"] = b"mine"
    except ReadOnlyError:
        outcome = "released"
    except PoisonedStoreError:
        outcome = "refused"
    if outcome != "released":
        with pytest.raises(DeviceBusyError):  # nobody writes without the lock
            blobstore.open(path, secret, direct=True)
        store.release()
    elif needs_release:
        store.release()  # finishes what was interrupted
    with blobstore.open(path, secret, direct=True) as other:
        for name, content in written.items():
            assert other.get(name) == content, where
        other.put("a", b"theirs again")
    assert store.get("a") in (b"theirs", b"theirs again"), where
    failure = None
    try:
        store.take_over()
    except DeviceError as error:
        failure = error
    if failure is not None:
        # A flush of qcow2 was interrupted: only another store may write to the image (Q16).
        assert "[Q16]" in str(failure), where
        assert failure.hint == "open the image again"
        store.close()
        with blobstore.open(path, secret, direct=True) as anew:
            assert anew.get("a") == b"theirs again", where
            assert anew.verify().ok, where
        return "open again"
    assert store.get("a") == b"theirs again", where
    store.put("b", b"mine again")
    store.close()
    with blobstore.open(path, secret, direct=True) as anew:
        assert anew.get("a") == b"theirs again", where
        assert anew.get("b") == b"mine again", where
        assert anew.verify().ok, where
    return outcome
