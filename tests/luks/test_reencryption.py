"""What a re-encryption promises to its caller."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice, read_exactly
from formats.frozen import replace
from luks.header.luks2_reencrypt_rules import ReencryptRecord
from luks.header.writer import rewrite_header
from luks.model import Area, Segment
from luks.reencryption.plan import (
    BackwardPlan,
    ForwardPlan,
    Plan,
    Progress,
    ShiftedDecryption,
    ShiftedEncryption,
)
from luks.reencryption.resilience import ChecksumRecovery, Converter, checksums, payload_cipher
from tests.luks.reencryption_support import CASES, KIB, Case, by_name, options, volume
from tests.luks.support import OTHER, PASSPHRASE, PBKDF2, json_of, pattern

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 64 * KIB


def begun(case: Case) -> luks.Reencryption:
    return case.begin(*case.before.devices())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_l152_the_payload_is_read_and_written_between_steps(case: Case) -> None:
    """L152: every byte is found where it is durable; writes go to the right place."""
    running = begun(case)
    expected = bytearray(case.plain)
    generator = random.Random(case.name)
    with running:
        while True:
            size = generator.randrange(1, 9000)
            at = generator.randrange(case.size - size)
            data = generator.randbytes(size)
            running.volume.write(at, data)
            expected[at : at + size] = data
            assert read_exactly(running.volume, 0, case.size) == expected
            if not running.step():
                break
        assert running.status.is_finished
        assert running.volume.size >= case.size


def test_l152_other_threads_use_the_payload_meanwhile() -> None:
    case = by_name("checksum-512")
    running = begun(case)
    wrong: list[str] = []
    stop = threading.Event()

    def use(start: int) -> None:
        generator = random.Random(start)
        mine = bytearray(case.plain[start : start + 8 * KIB])
        while not stop.is_set():
            at = generator.randrange(8 * KIB - 600)
            data = generator.randbytes(600)
            running.volume.write(start + at, data)
            mine[at : at + 600] = data
            if read_exactly(running.volume, start, 8 * KIB) != mine:
                wrong.append("a write was lost")
        final[start] = bytes(mine)

    final: dict[int, bytes] = {}
    with running:
        threads = [threading.Thread(target=use, args=(n * 8 * KIB,)) for n in range(3)]
        for thread in threads:
            thread.start()
        running.run()
        stop.set()
        for thread in threads:
            thread.join()
        for start, data in final.items():
            assert read_exactly(running.volume, start, len(data)) == data
    assert not wrong


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_l170_any_number_of_workers_gives_the_same(workers: int) -> None:
    case = by_name("checksum-4096")
    image, _ = case.before.devices()
    changed = options(workers=workers, hotzone_size=20 * KIB)
    seen = []
    with luks.begin_reencryption(image, PASSPHRASE, options=changed) as running:
        running.run(lambda status: seen.append(status.position))
        assert read_exactly(running.volume, 0, case.size) == case.plain
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, case.size)
    with luks.open(image, PASSPHRASE) as opened:
        assert opened.read(0, case.size) == case.plain


def test_l164_a_keyslot_is_lost_only_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "image"
    luks.format(path, PASSPHRASE, kdf=PBKDF2, size=SIZE, key_size=32).close()
    luks.add_keyslot(path, PASSPHRASE, OTHER, kdf=PBKDF2)
    with luks.edit(path) as header:
        header.set_priority(1, luks.model.PRIORITY_PREFER)
        header.set_token({"type": "acme", "keyslots": ["1"], "x": 1})
    before = path.read_bytes()
    with pytest.raises(luks.PolicyError, match=r"keyslots 0 would vanish|keyslots 1 would vanish"):
        luks.reencrypt(path, PASSPHRASE, options=options())
    assert path.read_bytes() == before
    luks.reencrypt(path, PASSPHRASE, others=[OTHER], options=options())
    after = luks.load_header(path)
    assert len(after.keyslots) == 2
    for secret in (PASSPHRASE, OTHER):
        luks.open(path, secret).close()
    (token,) = after.tokens.values()
    with luks.open(path, OTHER) as opened:
        assert token.keyslots == (opened.keyslot,)
        assert after.keyslots[token.keyslots[0]].priority == luks.model.PRIORITY_PREFER
    luks.reencrypt(path, OTHER, options=options(drop_keyslots=True))
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.open(path, PASSPHRASE)
    luks.open(path, OTHER).close()


def test_l164_the_old_key_opens_nothing_afterwards() -> None:
    """The old key material is erased, and the new key is another one."""
    case = by_name("checksum-4096")
    image, _ = case.before.devices()
    old = luks.load_header(image)
    area = old.keyslots[0].area
    material = bytes(image.content[area.offset : area.end])
    with luks.open_header(image) as (device, header):
        key = luks.unlock(device, header, PASSPHRASE)
    luks.reencrypt(image, PASSPHRASE, options=options())
    assert image.content[area.offset : area.end] != material
    with pytest.raises(luks.UnlockError):
        luks.verify_volume_key(luks.load_header(image), key.key.view())


@pytest.mark.parametrize("name", ["checksum-4096", "detached", "decrypt-journal"])
def test_l163_what_has_moved_nothing_is_taken_back(name: str) -> None:
    case = by_name(name)
    image, header = case.before.devices()
    place = image if header is None else header
    before = luks.load_header(place)
    case.begin(image, header).close()
    with pytest.raises(luks.UnfinishedReencryptionError, match="L150"):
        case.begin(image, header)
    luks.abort_reencryption(image, PASSPHRASE, header=header)
    after = luks.load_header(place)
    empty: dict[str, Any] = {"requirements": {"mandatory": []}}
    assert json_of(after) == {**json_of(before), "config": {**json_of(before)["config"], **empty}}
    with luks.open(image, PASSPHRASE, header=header) as opened:
        assert opened.read(0, case.size) == case.plain
    with pytest.raises(luks.NoReencryptionError):
        luks.abort_reencryption(image, PASSPHRASE, header=header)
    with case.begin(image, header) as running:
        running.step()
    with pytest.raises(luks.UnfinishedReencryptionError, match="L163"):
        luks.abort_reencryption(image, PASSPHRASE, header=header)


def test_l168_a_header_is_exported_for_a_decryption(tmp_path: Path) -> None:
    """Encrypting and decrypting again gives the image that there was, and its size."""
    path, header = tmp_path / "image", tmp_path / "header"
    plain = pattern("plain", 5 * 4096)
    path.write_bytes(plain)
    luks.encrypt(path, PASSPHRASE, options=options())
    with luks.open(path, PASSPHRASE) as opened:
        assert opened.size == len(plain)
        assert opened.read(0, len(plain)) == plain
    with pytest.raises(luks.LuksExistsError):
        luks.encrypt(path, PASSPHRASE, options=options())
    with pytest.raises(ValueError, match="name a file"):
        luks.decrypt(path, PASSPHRASE)
    luks.decrypt(path, PASSPHRASE, header=header, options=options())
    assert path.read_bytes() == plain


def test_l167_no_copy_of_the_plain_bytes_stays() -> None:
    for name in ("encrypt", "encrypt-small", "encrypt-room"):
        case = by_name(name)
        after = case.recorded.after.image
        for at in range(0, case.size - 64, 64):
            assert case.plain[at : at + 64] not in after


def test_l156_an_iv_tweak_is_refused() -> None:
    content = volume(pattern("x", SIZE))
    image = MemoryDevice(content.image)
    header = luks.load_header(image)
    segment = replace(header.segments[0], iv_tweak=8)
    changed = replace(header, segments={0: segment})
    rewrite_header(image, changed)
    with pytest.raises(luks.UnsupportedError, match="L156"):
        luks.begin_reencryption(image, PASSPHRASE, options=options())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resilience": "datashift"}, "resilience is one of"),
        ({"sector_size": 1000}, "sector_size"),
        ({"hotzone_size": 100}, "hotzone_size"),
        ({"workers": 0}, "workers"),
        ({"data_shift": 100}, "data_shift"),
    ],
)
def test_impossible_options_are_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        luks.ReencryptionOptions(**changes)


def test_a_closed_re_encryption_is_not_used() -> None:
    running = begun(by_name("checksum-4096"))
    running.close()
    running.close()
    for use in (running.step, lambda: read_exactly(running.volume, 0, 1)):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_l154_segments_that_no_run_writes_are_refused() -> None:
    """L154: nothing but the segments says what is where."""
    case = by_name("checksum-4096")
    begun_content = case.recorded.begun
    image = MemoryDevice(begun_content.image)
    header = luks.load_header(image)
    numbers = sorted(header.segments)
    first = header.segments[0]
    odd = {
        "another IV": {0: replace(first, iv_tweak=8)},
        "shifted": {0: replace(first, offset=first.offset + 4096)},
    }
    for changed in odd.values():
        device = MemoryDevice(begun_content.image)
        there = luks.load_header(device)
        segments = {n: changed.get(n, there.segments[n]) for n in numbers}
        rewrite_header(device, replace(there, segments=segments))
        with pytest.raises(luks.StorageError):
            luks.resume_reencryption(device, PASSPHRASE)


def test_a_wrong_passphrase_resumes_nothing() -> None:
    case = by_name("checksum-4096")
    content = case.recorded.begun
    image = MemoryDevice(content.image)
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.resume_reencryption(image, OTHER)
    assert image.content == content.image
    with pytest.raises(luks.NoReencryptionError):
        luks.resume_reencryption(MemoryDevice(case.before.image), PASSPHRASE)


# ---------------------------------------------------------------- plans


def _plan(kind: str, size: int) -> Plan:
    area = Area(32 * KIB, 4096, None, 0)
    crypt = Segment("crypt", 4096 * KIB, None, cipher="aes-xts-plain64", sector_size=4096)
    linear = Segment("linear", 4096 * KIB, None)
    record = ReencryptRecord(1, 2, "reencrypt", "forward", "checksum", area, "sha256", 4096)
    shift = replace(record, shift_size=16 * KIB, resilience="datashift")
    at = {"offset": 16 * KIB}
    if kind == "forward":
        return ForwardPlan(record, crypt, replace(crypt, sector_size=512), size, False)
    if kind == "fixed":
        return ForwardPlan(record, crypt, replace(crypt, sector_size=512), size, True)
    if kind == "backward":
        return BackwardPlan(record, crypt, linear, size, False)
    if kind == "encrypt":
        old = replace(linear, offset=0, size=size)
        moved = Segment("linear", 10 * size + 16 * KIB, min(size, 16 * KIB))
        return ShiftedEncryption(shift, old, replace(crypt, **at), size, False, moved)
    moved = replace(crypt, offset=0, size=min(size, 12 * KIB))
    return ShiftedDecryption(
        shift, replace(crypt, **at), replace(linear, offset=0), size, False, moved
    )


@pytest.mark.parametrize("kind", ["forward", "fixed", "backward", "encrypt", "decrypt"])
@pytest.mark.parametrize("size", [4 * KIB, 12 * KIB, 16 * KIB, 20 * KIB, 100 * KIB])
@pytest.mark.parametrize("limit", [4 * KIB, 8 * KIB, 64 * KIB])
def test_l153_segments_say_how_far_it_is(kind: str, size: int, limit: int) -> None:
    """L152, L153: zones cover the payload once, and no zone overwrites what is still needed."""
    plan = _plan(kind, size)
    progress, covered = Progress(0), []
    while progress.done < size:
        assert progress in plan.find_progress([s for s, _ in plan.segments(progress)])
        zone = plan.zone(progress, limit)
        assert 0 <= zone.start < zone.end <= size
        hot = Progress(progress.done, zone.size)
        described = [segment for segment, _ in plan.segments(hot)]
        assert list(plan.find_progress(described)) == [hot]
        assert plan.zone(hot, limit) == zone
        assert sum(segment.is_hot for segment in described) == 1
        if plan.protection(zone) == "shift":
            written = range(plan.target(zone), plan.target(zone) + zone.size)
            read = range(plan.source(zone), plan.source(zone) + zone.size)
            assert written.stop <= read.start or read.stop <= written.start
        covered.append(zone)
        progress = Progress(progress.done + zone.size)
    assert progress in plan.find_progress([s for s, _ in plan.segments(progress)])
    assert sum(zone.size for zone in covered) == size
    assert min(zone.start for zone in covered) == 0
    assert len({zone.start for zone in covered}) == len(covered)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("aes-xts-plain64", "aes-xts-plain64"),
        ("aes-cbc-plain64", "aes-xts-plain64"),
        ("aes-xts-plain64", "aes-cbc-plain64"),
        (None, "aes-cbc-plain64"),
    ],
)
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_l159_a_torn_block_is_put_together(old: str | None, new: str, sector_size: int) -> None:
    """L159: whichever of its 512-byte parts are old and new, unless that is all the same."""
    keys = [luks.Secret(random.Random(n).randbytes(32)) for n in range(2)]
    before = Segment("linear", 0, None) if old is None else Segment("crypt", 0, None, old, 512)
    after = Segment("crypt", 0, None, new, sector_size)
    if old is not None:
        before = replace(before, sector_size=sector_size)
    record = ReencryptRecord(
        1, 2, "reencrypt", "forward", "checksum", Area(0, 4096, None, 0), "sha256", 4096
    )
    plan = ForwardPlan(record, before, after, 4096, False)
    converter = Converter(payload_cipher(before, keys[0]), payload_cipher(after, keys[1]))
    old_form = random.Random(3).randbytes(4096)
    new_form = bytearray(old_form)
    converter.convert(8, memoryview(new_form))
    sums = memoryview(checksums(memoryview(old_form), 4096, "sha256"))
    for pattern_of_new in (1, 2, 128, 127, 0b10101010, 0b11110000, 0, 255):
        torn = bytearray(old_form)
        for part in range(8):
            if pattern_of_new >> part & 1:
                torn[part * 512 : part * 512 + 512] = new_form[part * 512 : part * 512 + 512]
        ChecksumRecovery(plan, converter).restore(8, memoryview(torn), sums)
        assert torn == new_form
