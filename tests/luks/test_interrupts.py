"""Ctrl-C at every bytecode of whatever writes a LUKS header: nothing is lost (L98).

After each interrupt the volume opens with a passphrase that it had before or was to have, a
further change goes through, and then both header copies are sound and agree. A sample of
the points is tried, most of them after the first write. ``BLOBSTORE_EVERY_INTERRUPT=1`` tries
all, ``=classes`` one of each kind, from the first write on. What an interrupt leaves depends
on nothing but what is on the device, and that on nothing random here: each content is looked
at once.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import luks
from formats.devices.device import MemoryDevice
from luks.header.load import opened_for_header
from luks.header.lock import exclusive
from tests.luks.support import OTHER, PASSPHRASE, PBKDF2
from tests.support.interrupts import InterruptPoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from luks.header.detection import Place

pytestmark = [
    pytest.mark.slow,
    # Python ignores, and reports, what interrupts a destructor, such as that of a file.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NEW, LAST = b"new passphrase", b"last passphrase"
SECRETS = (PASSPHRASE, OTHER, NEW, LAST)
SAMPLE = 40
PAYLOAD = b"payload!" * 512
VERSIONS = (1, 2)


@pytest.fixture(autouse=True)
def few_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anti-forensic stripes take many bytecodes, all alike; LUKS2 leaves no choice of them."""
    monkeypatch.setattr("luks.keys.enroll.STRIPES", 2)


def repeatable(run: Callable[[], object]) -> None:
    """Run something with the same random bytes each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.urandom", luks.SeededSource(b"interrupts"))
        run()


class Interrupted:
    """A call that is interrupted at each point in turn, beginning anew each time.

    Attributes:
        all: Its points.
        points: Those to try.
    """

    def __init__(
        self, begin: Callable[[], object], run: Callable[[], object], content: Callable[[], bytes]
    ) -> None:
        """Find the points: of what ``run`` does to ``content`` after ``begin``."""
        self._begin, self._run, self._content = begin, run, content
        self._seen: set[bytes] = set()
        begin()
        before = content()
        self.all: InterruptPoints
        repeatable(lambda: setattr(self, "all", InterruptPoints(run)))
        first, end = 1, self.all.total  # the first point at which something is written already
        while first < end:
            middle = (first + end) // 2
            self.at(middle)
            first, end = (first, middle) if content() != before else (middle + 1, end)
        earlier = self.all.chosen(SAMPLE // 4, last=first)
        if self.all.by_class:  # nothing is written yet: a hundred show that
            earlier = earlier[:: 1 + len(earlier) // 100]
        self.points = sorted({*earlier, *self.all.chosen(SAMPLE, first)})

    def at(self, point: int) -> bool:
        """Begin anew and interrupt it there; say whether the outcome is one not yet seen."""
        self._begin()
        with suppress(KeyboardInterrupt):
            repeatable(lambda: self._interrupt(point))
        digest = hashlib.sha256(self._content()).digest()
        is_new = digest not in self._seen
        self._seen.add(digest)
        return is_new

    def _interrupt(self, point: int) -> None:
        with self.all.interrupted_at(point):
            self._run()

    def outcomes(self) -> Iterator[int]:
        """Go through the points whose outcome is none that was there before."""
        self._seen.clear()
        for point in self.points:
            if self.at(point):
                yield point
        print(f"{len(self.points)} of {self.all}, {len(self._seen)} outcomes")


@cache
def base(version: int) -> bytes:
    """A volume that `PASSPHRASE` opens, and `OTHER`, for which there is a token in LUKS2."""
    device = MemoryDevice(0)
    options: dict[str, Any] = {"stripes": 2}
    if version == 2:
        options = {"keyslots_size": 1 << 20, "data_offset": 2 << 20}
    with luks.format(
        device, PASSPHRASE, version=version, key_size=32, size=4096, kdf=PBKDF2, **options
    ) as volume:
        volume.write(0, PAYLOAD)
    luks.add_keyslot(device, PASSPHRASE, OTHER, kdf=PBKDF2)
    if version == 2:
        with luks.edit(device) as header:
            header.set_token({"type": "acme", "keyslots": ["1"], "name": "x"})
    return bytes(device.content)


@cache
def backup(version: int) -> bytes:
    """A backup of its header from when `PASSPHRASE` opened it, and `NEW`."""
    device = MemoryDevice(base(version))
    luks.remove_keyslot(device, 1)
    luks.add_keyslot(device, PASSPHRASE, NEW, kdf=PBKDF2)
    return bytes(device.content)


class Change(NamedTuple):
    """What is interrupted.

    Attributes:
        run: It.
        before: The secrets that open before, of which one must after each interrupt.
        after: Those that open when it went through.
        versions: Of LUKS.
        gap: Versions in which there is a moment when fewer secrets open (L113, L114).
    """

    run: Callable[[Place], object]
    before: tuple[bytes, ...] = (PASSPHRASE, OTHER)
    after: tuple[bytes, ...] = (PASSPHRASE, OTHER)
    versions: tuple[int, ...] = VERSIONS
    gap: tuple[int, ...] = ()


def version_of(place: Place) -> int:
    return luks.load_header(place).version


def several(place: Place) -> None:
    """What only a transaction can."""
    with luks.edit(place) as header:
        header.unlock(PASSPHRASE)
        header.add_keyslot(NEW, kdf=PBKDF2)
        header.add_keyslot(LAST, kdf=PBKDF2)
        header.remove_keyslot(0)
        header.remove_keyslot(1)
        header.set_uuid("11111111-2222-3333-4444-555555555555")


def tokens(place: Place) -> None:
    with luks.edit(place) as header:
        header.set_token(luks.keyring_token("k", [0]), number=5)
        header.assign_token(0, 0)
        header.remove_token(0)


def labels(place: Place) -> None:
    with luks.edit(place) as header:
        header.set_labels(label="label", subsystem="subsystem")
        header.set_flags(["allow-discards"])
        header.set_priority(1, 2)


def unbound(place: Place) -> None:
    with luks.edit(place) as header:
        header.add_keyslot(NEW, kdf=PBKDF2, unbound_key=bytes(40))


def restore(place: Place) -> None:
    luks.restore_header(place, MemoryDevice(backup(version_of(place))))


def damaged_primary(place: Place) -> None:
    """Opening for writing restores a copy (L94)."""
    assert isinstance(place, MemoryDevice)
    place.content[5000] ^= 1
    luks.open(place, PASSPHRASE, read_only=False).close()


def damaged_secondary(place: Place) -> None:
    assert isinstance(place, MemoryDevice)
    place.content[16384 + 5000] ^= 1
    luks.repair(place)


CHANGES = {
    "add": Change(
        lambda place: luks.add_keyslot(place, PASSPHRASE, NEW, kdf=PBKDF2),
        after=(PASSPHRASE, OTHER, NEW),
    ),
    "change": Change(
        lambda place: luks.change_keyslot(place, PASSPHRASE, NEW, kdf=PBKDF2), after=(OTHER, NEW)
    ),
    "remove": Change(lambda place: luks.remove_keyslot(place, 1), after=(PASSPHRASE,)),
    "amend": Change(
        lambda place: luks.amend(place, state="inactive", old_secret=OTHER), after=(PASSPHRASE,)
    ),
    "transaction": Change(several, after=(NEW, LAST)),
    "tokens": Change(tokens, versions=(2,)),
    "labels": Change(labels, versions=(2,)),
    "unbound": Change(unbound, versions=(2,)),
    "restore": Change(restore, after=(PASSPHRASE, NEW), gap=(1,)),
    "repair primary": Change(damaged_primary, versions=(2,)),
    "repair secondary": Change(damaged_secondary, versions=(2,)),
    "erase": Change(luks.repair),
    "destroy": Change(luks.destroy_keys, after=(), gap=(1, 2)),
}
CASES = [
    pytest.param(name, version, id=f"{name} {version}")
    for name, change in CHANGES.items()
    for version in change.versions
]


def opening(place: Place) -> set[bytes]:
    """The secrets that open the volume, each to its payload."""
    found = set()
    for secret in SECRETS:
        with suppress(luks.UnlockError), luks.open(place, secret) as volume:
            assert volume.read(0, len(PAYLOAD)) == PAYLOAD
            found.add(secret)
    return found


def check_next_change(place: Place, secret: bytes) -> None:
    """Change the header once more, as a user does after Ctrl-C, and look at it from outside."""
    before = opening(place)
    luks.add_keyslot(place, secret, b"another", kdf=PBKDF2)
    luks.open(place, b"another", read_only=False).close()
    assert opening(place) == before
    assert luks.load_header(place).stale_copy is None


def check(place: Place, change: Change) -> None:
    there = opening(place)
    assert there <= {*change.before, *change.after}
    # Whatever was to stay is there all the time.
    assert there >= {*change.before} & {*change.after}
    if luks.load_header(place).version not in change.gap:
        assert there
        assert there >= {*change.before} or there >= {*change.after}
    if there:
        check_next_change(place, min(there))


@pytest.mark.parametrize(("name", "version"), CASES)
def test_l98_an_interrupt_loses_no_passphrase(name: str, version: int) -> None:
    change = CHANGES[name]
    backup(version)
    device = MemoryDevice(base(version))

    def begin() -> None:
        device.content[:] = base(version)

    change.run(device)
    check(device, change)
    begin()
    interrupted = Interrupted(begin, lambda: change.run(device), lambda: bytes(device.content))
    for _ in interrupted.outcomes():
        check(device, change)


@pytest.mark.parametrize(("version", "keyslot"), [(1, 2), (1, 7), (2, 2)])
def test_l98_a_transaction_goes_on_after_an_interrupted_commit(version: int, keyslot: int) -> None:
    """The same object commits again, with a further change, whatever was written already.

    Only where both sectors of a LUKS1 header change is there something in between.
    """

    def begun(device: MemoryDevice) -> luks.HeaderEdit:
        transaction = luks.HeaderEdit(device)
        transaction.unlock(PASSPHRASE)
        transaction.add_keyslot(NEW, keyslot=keyslot, kdf=PBKDF2)
        transaction.remove_keyslot(1)
        return transaction

    device = MemoryDevice(base(version))
    transaction = begun(device)

    def begin() -> None:
        nonlocal transaction
        device.content[:] = base(version)
        transaction = begun(device)

    in_between = 0

    def run() -> None:
        transaction.commit()

    interrupted = Interrupted(begin, run, lambda: bytes(device.content))
    for point in interrupted.points:
        interrupted.at(point)
        if version == 2:
            transaction.set_labels(label="after")
        transaction.add_keyslot(LAST, kdf=PBKDF2)
        try:
            transaction.commit()
        except luks.DeviceBusyError:
            in_between += 1
            expected = {PASSPHRASE, OTHER, NEW}
        else:
            expected = {PASSPHRASE, NEW, LAST}
        assert opening(device) == expected
        check_next_change(device, PASSPHRASE)
    assert (in_between > 0) == (keyslot == 7)


@pytest.mark.parametrize("version", VERSIONS)
def test_l98_formatting_leaves_the_old_header_or_none_or_the_new_one(
    tmp_path: Path, version: int
) -> None:
    path = tmp_path / "image"

    def run() -> None:
        options: dict[str, Any] = {"stripes": 2} if version == 1 else {"keyslots_size": 128 << 10}
        luks.format(
            path, NEW, version=version, key_size=32, kdf=PBKDF2, overwrite=True, **options
        ).close()

    def begin() -> None:
        path.write_bytes(base(version))

    interrupted = Interrupted(begin, run, path.read_bytes)
    for _ in interrupted.outcomes():
        try:
            luks.load_header(path)
        except (luks.ForeignImageError, luks.LuksHeaderError):
            pass  # the old one is given up, and the new one is not there yet (L13)
        else:
            assert opened_by(path) in ({PASSPHRASE, OTHER}, {NEW})
        run()  # nothing of the interrupted call keeps the file locked
        assert opened_by(path) == {NEW}


def opened_by(path: Path) -> set[bytes]:
    found = set()
    for secret in SECRETS:
        with suppress(luks.UnlockError):
            luks.open(path, secret).close()
            found.add(secret)
    return found


class Move(NamedTuple):
    """A change of files: of the image, its header's, and what a backup goes to."""

    run: Callable[[Path, Path], object]
    attached: bool = True


MOVES = {
    "add": Move(lambda image, _: luks.add_keyslot(image, PASSPHRASE, NEW, kdf=PBKDF2)),
    "backup": Move(lambda image, header: luks.backup_header(image, header, overwrite=True)),
    "detach": Move(lambda image, header: luks.detach_header(image, header, overwrite=True)),
    "attach": Move(luks.attach_header, attached=False),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("version", VERSIONS)
def test_l98_files_open_after_an_interrupt_attached_or_detached(
    tmp_path: Path, name: str, version: int
) -> None:
    """Nothing of the interrupted call keeps a file locked, and a file is whole or not there."""
    move = MOVES[name]
    image, header = tmp_path / "image", tmp_path / "header"
    image.write_bytes(base(version))
    if not move.attached:
        luks.detach_header(image, header)
    start = image.read_bytes(), header.read_bytes() if header.exists() else None

    def begin() -> None:
        image.write_bytes(start[0])
        header.unlink(missing_ok=True)
        for left in tmp_path.glob(".*.tmp"):
            left.unlink()  # cleaning up was interrupted; these runs choose equal names
        if start[1] is not None:
            header.write_bytes(start[1])

    def content() -> bytes:
        return image.read_bytes() + (header.read_bytes() if header.exists() else b"")

    interrupted = Interrupted(begin, lambda: move.run(image, header), content)
    for _ in interrupted.outcomes():
        places: Iterable[Path | None] = [None, header] if header.exists() else [None]
        opened = 0
        for place in places:
            with suppress(luks.ForeignImageError, luks.LuksHeaderError):
                with luks.open(image, PASSPHRASE, header=place, read_only=False) as volume:
                    assert volume.read(0, len(PAYLOAD)) == PAYLOAD
                luks.add_keyslot(place or image, PASSPHRASE, LAST, kdf=PBKDF2)
                assert luks.load_header(place or image).stale_copy is None
                opened += 1
        assert opened
        if header.exists():
            luks.load_header(header)


def test_c90_an_interrupt_leaves_no_lock_of_a_volume_taken() -> None:
    """Other threads go on to read and write it, and closing waits for nobody."""
    device = MemoryDevice(base(2))

    def call() -> None:
        volume.write(100, b"new " * 500)
        assert volume.read(100, 4) == b"new "

    with luks.open(device, PASSPHRASE, read_only=False) as volume:
        points = InterruptPoints(call)
        (segment,) = volume._segments
        for point in points.chosen(4 * SAMPLE):
            with suppress(KeyboardInterrupt), points.interrupted_at(point):
                call()
            assert not segment._lock.locked(), f"interrupted at {point}"
        call()


def test_l98_an_interrupt_gives_the_lock_back(tmp_path: Path) -> None:
    """At each point: a lock that is left would keep everybody from the header."""
    path = tmp_path / "image"
    path.touch()

    def run() -> None:
        with ExitStack() as stack:
            stack.enter_context(opened_for_header(path))

    points = InterruptPoints(run)
    for point in range(1, points.total + 1):
        with suppress(KeyboardInterrupt), points.interrupted_at(point):
            run()
        with exclusive(path, timeout=0):
            pass
