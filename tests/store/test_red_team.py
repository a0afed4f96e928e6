"""Parts set back together with damage: an older blob is never answered (C67, C68, C69).

Whoever can write to an image may put older parts of it back and damage others, so that
what would tell of it is not there to be read. In a store that was closed none of that
makes a blob pass which is not the newest.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

import luks
from blobstore.container.authentication import Authenticator
from blobstore.container.initialise import container_size, initialise
from blobstore.container.open_container import open_container
from blobstore.container.proving import READER_WORK
from blobstore.container.scan import scan
from blobstore.errors import (
    BlobNotFoundError,
    CorruptBlobError,
    CorruptStoreError,
    DamagedHeadError,
    PinMismatchError,
    UnwrittenBlobError,
)
from blobstore.manifests.unpack import unpack
from blobstore.store.description import StateDigest
from blobstore.store.store import Store
from formats.container.model import HEAD_SIZE, State
from formats.devices.device import MemoryDevice
from tests.luks.support import PASSPHRASE, PBKDF2, SMALL
from tests.support.devices import FaultyDevice, RecordingDevice, crash_states
from tests.support.effort import cases
from tests.support.stores import CORRUPT, UNWRITTEN, Contents, contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Damage = Callable[[bytearray, int], None]

SPECS = [spec("a", 700), spec("b", 100), spec("p", 300, copies=1), spec("w", 64, kind=1)]

encrypted_or_not = pytest.mark.parametrize("encrypted", [True, False], ids=["hmac", "sha256"])
reader_or_writer = pytest.mark.parametrize("read_only", [True, False], ids=["reader", "writer"])


def flip(content: bytearray, offset: int) -> None:
    content[offset + 70] ^= 4


def flip_framing(content: bytearray, offset: int) -> None:
    content[offset + 2] ^= 1


def garble(content: bytearray, offset: int) -> None:
    """What one flipped bit below a cipher does."""
    content[offset + 16 : offset + 32] = random.Random(offset).randbytes(16)


def destroy(content: bytearray, offset: int) -> None:
    content[offset : offset + HEAD_SIZE] = random.Random(offset).randbytes(HEAD_SIZE)


DAMAGES: tuple[Damage, ...] = (flip, flip_framing, garble, destroy)


@cache
def past(*, encrypted: bool = True) -> tuple[bytes, ...]:
    """Return a store as it was after each of its closings."""
    device = MemoryDevice(image(SPECS[:3], free=6144, encrypted=encrypted))
    images = [bytes(device.content)]
    for number in range(4):
        with open_store(device) as store:
            for name in ("p", "b", "a")[: number + 1]:
                store.put(name, f"{name}{number}".encode() * 20)
            if number == 1:
                store.register("c", 50)
                store.register("never", 50)
            if number == 2:
                store.put("c", b"c")
        images.append(bytes(device.content))
    return tuple(images)


def parts(content: bytes) -> list[tuple[int, int]]:
    """Return header copies, items, sections and neighbours, as offset and size."""
    device = MemoryDevice(content)
    items = [(offset, item.length) for offset, item in scan(device).items]
    sections = [s.place for s in open_container(device).directory.sections.values()]
    pairs = [(start, size + more) for (start, size), (_, more) in itertools.pairwise(items)]
    return [(0, 512), (512, 512), *items, *sections, *pairs]


def replayed(current: bytes, earlier: bytes, start: int, size: int) -> bytearray:
    return bytearray(current[:start] + earlier[start : start + size] + current[start + size :])


def judged(content: bytes, truth: Contents, *, read_only: bool) -> str:
    """Open and read everything; fail if anything is answered that is not the newest."""
    try:
        store = open_store(content, read_only=read_only)
    except CorruptStoreError:
        return "refused"
    info = store.info()
    for name, wanted in truth.items():
        try:
            found: bytes | str = store.get(name)
        except UnwrittenBlobError:
            found = UNWRITTEN
        except CorruptBlobError:
            continue
        assert found == wanted, name
    with pytest.raises((BlobNotFoundError, DamagedHeadError)) as caught:
        store.get("unknown")
    assert (caught.type is DamagedHeadError) == bool(info.damaged_heads)
    if info.damaged_heads:
        return "damaged" if info.fresh else "not fresh"
    return "same" if contents(store) == truth else "corrupt"


@encrypted_or_not
@reader_or_writer
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_one_part_set_back_and_one_head_damaged(
    damage: Damage, read_only: bool, encrypted: bool
) -> None:
    generator = random.Random(f"{damage.__name__} {read_only} {encrypted}")
    images = past(encrypted=encrypted)
    current = images[-1]
    truth = contents(open_store(current, read_only=True))
    heads = [0, 512, *(offset for offset, _ in scan(MemoryDevice(current)).items)]
    tries = [
        (earlier, part, head)
        for earlier, part, head in itertools.product(images[:-1], parts(current), heads)
        if current[part[0] : sum(part)] != earlier[part[0] : sum(part)]
        # One of the header copies set back and the other destroyed is what section 7 names.
        and (damage in (flip, flip_framing) or head > 512)
    ]
    counts: Counter[str] = Counter()
    for earlier, part, head in generator.sample(tries, 60):
        content = replayed(current, earlier, *part)
        damage(content, head)
        counts[judged(bytes(content), truth, read_only=read_only)] += 1
    # Of a head that is gone nothing can be said, so neither that something was set back.
    assert counts["not fresh" if damage is destroy else "refused"] > 5, counts


@encrypted_or_not
def test_c67_a_record_set_back_and_a_flipped_bit_in_the_head_of_free_space(encrypted: bool) -> None:
    images = past(encrypted=encrypted)
    section = open_container(MemoryDevice(images[-1])).directory.sections["a"].newest
    content = replayed(images[-1], images[-2], section.offset, section.length)
    free = max(open_container(MemoryDevice(images[-1])).directory.free)
    flip(content, free)
    with pytest.raises(CorruptStoreError):
        open_store(bytes(content))
    # Destroyed beyond mending it proves nothing, and so nothing is answered.
    destroy(content, free)
    store = open_store(bytes(content))
    assert not store.info().fresh
    for name in ("a", "b", "c", "p", "never", "unknown"):
        with pytest.raises(DamagedHeadError) as caught:
            store.get(name)
        assert "--repair" in (caught.value.hint or "")


def not_fresh() -> bytes:
    """Return a store whose newest record of "p", which is its only one, is lost."""
    content = bytearray(past()[-1])
    destroy(content, open_container(MemoryDevice(content)).directory.sections["p"].newest.offset)
    return bytes(content)


def test_c67_what_is_refused_where_nothing_is_known_to_be_fresh(tmp_path: Path) -> None:
    truth = contents(open_store(past()[-1]))
    store = open_store(not_fresh())
    refused: tuple[Callable[[], object], ...] = (
        lambda: store.get("a"),
        lambda: store.register("a", 10),
        lambda: store.register("new", 10),
        lambda: store.window("a"),
        lambda: store.put("a", b"new"),
        lambda: store.delete("a"),
        store.digest,
        store.require_fresh,
        lambda: unpack(store, tmp_path / "unpacked"),
        lambda: "p" in store,
        lambda: open_store(not_fresh(), at_least_generation=1),
        lambda: open_store(not_fresh(), expect_digest=StateDigest(1, bytes(32))),
    )
    for what in refused:
        with pytest.raises(DamagedHeadError):
            what()
    with pytest.raises(DamagedHeadError), store.transaction() as changes:
        changes.get("a")
    assert not (tmp_path / "unpacked").exists()
    # It still says what it is.
    names = {section.name for section in store.sections(allow_damaged=True)}
    assert names == truth.keys() - {"p"} | {""}
    assert store.section("a").damage is None
    assert store.info().root is None
    report = store.verify()
    assert any("[C67]" in problem.message for problem in report.problems)
    # A human may have what is left; what looks unwritten may not be.
    left = open_store(not_fresh(), allow_damaged=True)
    for name in truth.keys() - {"p", "never"}:
        assert left.get(name) == truth[name]
    for name in ("p", "never", "unknown"):
        with pytest.raises(DamagedHeadError):
            left.get(name)
    with pytest.raises(DamagedHeadError):
        left.put("a", b"new")
    unpacked = unpack(left, tmp_path / "unpacked")
    assert unpacked.files.keys() == truth.keys() - {"p", "never"}
    assert unpacked.failed.keys() == {"never"}


def test_c67_absence_is_not_said_beside_a_damaged_head() -> None:
    """Nothing is hidden, as the root proves; still a new device is not made on such ground."""
    content = bytearray(past()[-1])
    destroy(content, max(open_container(MemoryDevice(content)).directory.free))
    store = open_store(bytes(content))
    assert store.info().fresh
    assert store.get("a") == b"a3" * 20
    assert store.digest() == open_store(past_like(content)).digest()
    open_store(bytes(content), at_least_generation=store.info().generation)
    for name in ("never", "unknown"):
        for ask in (store.get, lambda name: store.register(name, 50)):
            with pytest.raises(DamagedHeadError):
                ask(name)
    with pytest.raises(DamagedHeadError):
        store.put("a", b"new")
    report = store.repair()
    assert report.ok
    with pytest.raises(UnwrittenBlobError):
        store.get("never")


def past_like(damaged: bytearray) -> bytes:
    """Return the store without its damage."""
    device = MemoryDevice(bytes(damaged))
    open_store(device).repair()
    return bytes(device.content)


@encrypted_or_not
def test_c67_a_written_section_never_looks_unwritten(encrypted: bool) -> None:
    """Both copies as they were made, and the head damaged that would tell otherwise."""
    images = past(encrypted=encrypted)
    current, made = images[-1], images[2]
    place = open_container(MemoryDevice(current)).directory.sections["c"].place
    for head, damage in itertools.product(
        [0, 512, *(o for o, _ in scan(MemoryDevice(current)).items)], DAMAGES
    ):
        content = replayed(current, made, *place)
        damage(content, head)
        for permitted in (False, True):
            try:
                store = open_store(bytes(content), allow_damaged=permitted)
            except CorruptStoreError:
                continue
            with pytest.raises(CorruptBlobError):
                store.get("c")


def test_c67_flipped_bits_in_all_heads_lose_nothing() -> None:
    content = bytearray(past()[-1])
    truth = contents(open_store(bytes(content), read_only=True))
    heads = [0, 512, *(offset for offset, _ in scan(MemoryDevice(content)).items)]
    for number, head in enumerate(heads):
        content[head + 40 + number * 7] ^= 1 << number % 8
    store = open_store(bytes(content), read_only=True)
    assert contents(store) == truth
    assert store.info().mended_heads == tuple(heads[2:])
    messages = [problem.message for problem in store.verify().problems]
    assert len(messages) == len(heads)
    with pytest.raises(UnwrittenBlobError):
        store.get("never")
    with pytest.raises(BlobNotFoundError):
        store.get("unknown")


def test_c69_a_writer_writes_back_what_is_mended_and_may_crash_in_it() -> None:
    before = bytearray(past()[-1])
    truth = contents(open_store(bytes(before), read_only=True))
    heads = [512, *(offset for offset, _ in scan(MemoryDevice(before)).items)]
    for number, head in enumerate(heads):
        before[head + 50 + number * 9] ^= 1 << number % 8
    device = RecordingDevice(bytes(before))
    with open_store(device) as store:
        assert not store.info().mended_heads
        assert store.verify().ok
    assert bytes(device.content) == past_like(before)
    states = sorted({state.content for state in crash_states(bytes(before), device.log)})
    assert len(states) > len(heads)
    for content in random.Random(1).sample(states, min(len(states), cases(50, 1000))):
        found = open_store(content, read_only=True)
        assert contents(found) == truth
        assert not found.info().damaged_heads


def test_c69_nothing_is_written_back_beside_damage() -> None:
    content = bytearray(past()[-1])
    offsets = [offset for offset, _ in scan(MemoryDevice(content)).items]
    flip(content, offsets[0])
    destroy(content, offsets[-1])
    device = MemoryDevice(bytes(content))
    open_store(device).close()
    assert bytes(device.content) == bytes(content)
    assert open_store(device).repair().ok


# ------------------------------------------------------------------ header copies


@reader_or_writer
@pytest.mark.parametrize("copy", [0, 1])
def test_c67_a_header_copy_set_back_and_a_flip_in_the_other(copy: int, read_only: bool) -> None:
    """The other one says that the store was closed since."""
    images = past()
    a = open_container(MemoryDevice(images[-1])).directory.sections["a"].newest
    for earlier in images[1:-1]:
        content = replayed(images[-1], earlier, a.offset, a.length)
        content = replayed(bytes(content), earlier, copy * 512, 512)
        for position in range(20, 300, 60):
            changed = bytearray(content)
            changed[(1 - copy) * 512 + position] ^= 2
            with pytest.raises(CorruptStoreError):
                open_store(bytes(changed), read_only=read_only)


def test_c67_a_bit_in_each_header_copy() -> None:
    images = past()
    truth = contents(open_store(images[-1], read_only=True))
    for first, second in ((40, 512 + 40), (100, 512 + 100), (290, 512 + 4)):
        content = bytearray(images[-1])
        content[first] ^= 1
        content[second] ^= 8
        store = open_store(bytes(content), read_only=True)
        assert contents(store) == truth
        assert len(store.verify().problems) == 2
        device = MemoryDevice(bytes(content))
        open_store(device).close()
        assert bytes(device.content) == images[-1]


# ------------------------------------------------------------------ in a volume


@contextmanager
def in_luks() -> Iterator[tuple[MemoryDevice, bytes, bytes, int]]:
    """Yield a LUKS image, what it was before the last put, and is; and where the payload is."""
    device = MemoryDevice(0)
    size = container_size(SPECS[:3], block_size=512, free=4096)
    with luks.format(device, PASSPHRASE, kdf=PBKDF2, sector_size=512, size=size, **SMALL) as volume:
        initialise(volume, SPECS[:3], encrypted=True, block_size=512)
        start = len(device.content) - volume.size
        images = []
        for number in range(3):
            with Store.on_device(volume, encrypted=True) as store:
                store.put("a", b"%d" % number * 600)
            images.append(bytes(device.content))
    yield device, images[-2], images[-1], start


def test_a_record_set_back_in_a_volume_and_a_flip_below_the_cipher() -> None:
    """There a flipped bit garbles 16 bytes, wherever it is in the head."""
    with in_luks() as (device, earlier, current, start):
        with luks.open(device, PASSPHRASE) as volume:
            directory = open_container(volume).directory
        newest = directory.sections["a"].newest
        place, free = start + newest.offset, start + max(directory.free)
        counts: Counter[str] = Counter()
        for position in range(0, HEAD_SIZE, 16):
            for replay in (False, True):
                device.content[:] = current
                if replay:
                    end = place + newest.length
                    device.content[place:end] = earlier[place:end]
                device.content[free + position] ^= 1
                with luks.open(device, PASSPHRASE) as volume:
                    try:
                        store = Store.on_device(volume, encrypted=True, read_only=True)
                        found = store.get("a")
                    except CorruptStoreError:
                        assert replay
                        counts["refused"] += 1
                    except DamagedHeadError:
                        assert replay
                        counts["not fresh"] += 1
                    else:
                        assert not replay
                        assert found == b"2" * 600
                        counts["mended" if store.info().mended_heads else "fresh"] += 1
        assert counts["mended"] + counts["fresh"] == counts["refused"] + counts["not fresh"] == 32
        assert counts["mended"] >= 28
        assert counts["refused"] >= 28


# ------------------------------------------------------------------ pins


def test_c68_a_commit_that_is_rolled_back_meets_no_pin() -> None:
    """An image set back as a whole, with one record of a newer commit put into it."""
    images = past()
    newest = open_store(images[-1], read_only=True)
    pinned = newest.info().generation
    checked = 0
    for earlier in images[:-1]:
        set_back = open_container(MemoryDevice(earlier)).directory.generation
        for offset, item in scan(MemoryDevice(images[-1])).items:
            content = replayed(earlier, images[-1], offset, item.length)
            content[offset + HEAD_SIZE] ^= 1  # torn, as far as anybody can tell
            for read_only in (True, False):
                try:
                    open_store(bytes(content), at_least_generation=pinned, read_only=read_only)
                except (PinMismatchError, CorruptStoreError, DamagedHeadError):
                    checked += 1
                    continue
                raise AssertionError((offset, set_back))
    assert checked > 40


def test_c68_what_is_reported_is_what_counts_and_never_less_later() -> None:
    device = RecordingDevice(image(SPECS[:3]))
    with open_store(device) as store:
        store.put("a", b"a")
    before = bytes(device.content)
    pin = open_store(before, read_only=True).digest()
    torn = bytearray(before)
    again = RecordingDevice(before)
    open_store(again).put("a", b"b" * 700)
    write = again.writes[-1]
    torn[write.offset : write.offset + HEAD_SIZE] = write.data[:HEAD_SIZE]
    reader = open_store(bytes(torn), read_only=True, expect_digest=pin)
    assert reader.digest() == pin
    assert reader.info().generation == reader.verify().generation == pin.generation
    with pytest.raises(PinMismatchError):
        open_store(bytes(torn), at_least_generation=pin.generation + 1)
    store = open_store(bytes(torn), expect_digest=pin, at_least_generation=pin.generation)
    # Recovery uses the generation up: the same root, at a higher one.
    assert store.digest().root == pin.root
    assert store.digest().generation == pin.generation + 1
    store.put("b", b"b")
    assert store.digest().generation == pin.generation + 2
    store.close()


# ------------------------------------------------------------------ one after the other


@encrypted_or_not
def test_parts_set_back_one_after_the_other(encrypted: bool) -> None:
    """With a writer between: what it read, wrote and closed is there, or an error is."""
    generator = random.Random(f"successive {encrypted}")
    counts: Counter[str] = Counter()
    for _ in range(15):
        images = [*past(encrypted=encrypted)]
        device = MemoryDevice(images[-1])
        truth = contents(open_store(images[-1], read_only=True))
        for step in range(4):
            current = bytes(device.content)
            earlier = generator.choice(images)
            part = generator.choice(parts(current))
            heads = [offset for offset, _ in scan(MemoryDevice(current)).items]
            content = replayed(current, earlier, *part)
            if generator.random() < 0.6:
                generator.choice(DAMAGES)(content, generator.choice(heads))
            counts[judged(bytes(content), truth, read_only=True)] += 1
            # A writer on what was tampered with, and then one on what was not.
            for tampered in (bytes(content), current):
                device = MemoryDevice(tampered)
                try:
                    with open_store(device) as store:
                        blob = b"%d" % step * generator.choice((1, 90))
                        store.put("b", blob)
                        changed = truth | {"b": blob}
                        found = contents(store)
                        assert all(found[n] in (changed[n], CORRUPT) for n in changed)
                except CorruptBlobError:
                    continue
                truth = changed
                break
            images.append(bytes(device.content))
    assert counts["refused"] > 10, counts
    assert counts["same"] > 2, counts


# ------------------------------------------------------------------ in place


def test_c62_what_was_written_in_place_is_told() -> None:
    device = MemoryDevice(image([spec("w", 64, kind=1)]))
    with open_store(device) as store:
        assert store.section("w").in_place_since is None
        window = store.window("w", in_place=True)
        window.write(0, b"in place")
        since = store.section("w").in_place_since
        assert since == store.info().generation
        # Somebody else writes, too: nothing can tell.
        record = open_container(device).directory.sections["w"].newest
        assert record.version.state is State.IN_PLACE
        device.content[record.offset + HEAD_SIZE] ^= 0x20
        window.close()
        assert store.get("w")[:8] == b"In place"
    with open_store(device) as store:
        assert store.section("w").in_place_since == since
        report = store.verify()
        assert report.ok
        (note,) = report.notes
        assert (note.name, note.generation) == ("w", store.section("w").generation)
        assert "in place" in note.message
        with store.window("w") as buffered:
            buffered.write(0, b"as a commit")
        assert store.section("w").in_place_since is None
        assert not store.verify().notes


# ------------------------------------------------------------------ time


def test_c43_searching_for_heads_reads_in_large_pieces() -> None:
    content = bytearray(image([spec("a", 700, b"a")], free=32 << 20))
    truth = contents(open_store(bytes(content), read_only=True))
    free = max(open_container(MemoryDevice(content)).directory.free)
    for damage, limit in ((flip_framing, 20), (flip, 20), (destroy, 90)):
        damaged = bytearray(content)
        damage(damaged, free)
        device = FaultyDevice(MemoryDevice(damaged), "read", 0)
        store = open_store(device, read_only=True)
        assert device.counts["read"] < limit, damage
        assert contents(store) == truth


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_c67_many_damaged_heads_take_no_longer_than_some(
    damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray(image([spec(f"s{n}", 100, b"blob", copies=1) for n in range(200)]))
    heads = [offset for offset, _ in scan(MemoryDevice(content)).items][::2]
    for head in heads:
        damage(content, head)
    sealed = 0
    with_check = Authenticator.with_check

    def counting(self: Authenticator, *arguments: Any) -> bytes:
        nonlocal sealed
        sealed += 1
        return with_check(self, *arguments)

    monkeypatch.setattr(Authenticator, "with_check", counting)
    device = FaultyDevice(MemoryDevice(bytes(content)), "read", 0)
    container = open_container(device, allow_damaged=True)
    assert sealed <= READER_WORK + 1
    # Each head is read once, and again for what mending reveals.
    assert device.counts["read"] < 20 * len(heads)
    directory = container.directory
    assert len(directory.damaged) + len(container.mended) >= len(heads)
    assert len(container.mended) > 5 or damage not in (flip, flip_framing)
    assert len(directory.sections) >= 100
