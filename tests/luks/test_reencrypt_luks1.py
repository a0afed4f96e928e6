"""LUKS1 volumes that get another key or cipher in place, with a journal beside the image."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice, read_exactly
from tests.luks.programs import accepts, cryptsetup, key_file, qemu_read
from tests.luks.reencryption_support import options
from tests.luks.support import ARGON2ID, OTHER, PASSPHRASE, PBKDF2, known_volume, pattern
from tests.support.effort import cases

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KIB = 1 << 10
SIZE = 96 * KIB
PLAIN = pattern("luks1", SIZE)
NEW = b"another passphrase"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A LUKS1 volume that two passphrases open."""
    path = tmp_path / "image"
    with luks.format(path, PASSPHRASE, version=1, key_size=32, size=SIZE, kdf=PBKDF2) as volume:
        volume.write(0, PLAIN)
    luks.add_keyslot(path, PASSPHRASE, OTHER, keyslot=6, kdf=PBKDF2)
    return path


def begun(image: Path, **changes: Any) -> luks.Reencryption:
    return luks.begin_reencryption(image, PASSPHRASE, others=[OTHER], options=options(**changes))


def journal_of(image: Path) -> Path:
    return image.with_name("image.luks1-reencryption")


def check(image: Path, *, header: Path | None = None) -> luks.Header:
    """Both passphrases open the payload by their keyslots, and the journal is gone."""
    for secret, keyslot in ((PASSPHRASE, 0), (OTHER, 6)):
        with luks.open(image, secret, keyslot=keyslot, header=header) as volume:
            assert volume.read(0, SIZE) == PLAIN
    loaded = luks.load_header(header or image)
    assert (loaded.version, list(loaded.keyslots)) == (1, [0, 6])
    assert not journal_of(image).exists()
    return loaded


CHANGES: dict[str, dict[str, Any]] = {
    "key": {},
    "cipher": {"cipher": "aes-cbc-essiv:sha256", "key_size": 16, "hash_name": "sha512"},
    "journal": {"resilience": "journal"},
    "none": {"resilience": "none"},
}


@pytest.mark.interop
@pytest.mark.parametrize("name", CHANGES)
def test_l210_cryptsetup_and_qemu_open_what_has_a_new_key(
    name: str, image: Path, tmp_path: Path
) -> None:
    changes = dict(CHANGES[name])
    if "cipher" in changes:
        changes["kdf"] = luks.Pbkdf2("sha512", 1000)
    old = luks.load_header(image)
    before = image.read_bytes()
    with begun(image, **changes) as running:
        running.run()
        assert running.status.is_finished
        assert read_exactly(running.volume, 0, SIZE) == PLAIN
    new = check(image)
    assert (new.uuid, new.data_offset) == (old.uuid, old.data_offset)
    assert new.cipher == changes.get("cipher", old.cipher)
    assert new.digests[0].salt != old.digests[0].salt
    after = image.read_bytes()
    for start in range(old.data_offset, len(after), 512):
        assert before[start : start + 512] != after[start : start + 512]
    for keyslot in old.keyslots.values():  # nothing of the old key is left
        area = slice(keyslot.area.offset, keyslot.area.end)
        assert before[area] != after[area]
    for secret in (PASSPHRASE, OTHER):
        key = key_file(tmp_path, secret)
        assert accepts(image, key)
        assert qemu_read(image, key, tmp_path / "plain") == PLAIN


def test_l210_between_two_steps_the_payload_is_read_and_written_and_nothing_else_opens(
    image: Path,
) -> None:
    content = bytearray(PLAIN)
    with begun(image, hotzone_size=8 * KIB) as running:
        for number in range(100):
            offset = number * 977 % (SIZE - 600)
            running.volume.write(offset, bytes([number]) * 600)
            content[offset : offset + 600] = bytes([number]) * 600
            assert read_exactly(running.volume, 0, SIZE) == content
            if number == 4:
                with pytest.raises(luks.DeviceBusyError):
                    luks.open(image, PASSPHRASE)
            if not running.step():
                break
        else:
            pytest.fail("it does not end")
        running.volume.flush()
        assert not running.step()
    with luks.open(image, OTHER) as volume:
        assert volume.read(0, SIZE) == content


def test_l211_what_was_left_is_resumed_by_any_passphrase_and_shown_without_one(
    image: Path,
) -> None:
    assert luks.reencryption_status(image) is None
    with begun(image) as running:
        running.step()
        status = running.status
    assert status.position == 16 * KIB
    assert luks.reencryption_status(image) == status
    assert luks.is_luks(image)
    for refused in (
        lambda: luks.open(image, PASSPHRASE),
        lambda: luks.load_header(image),
        lambda: luks.add_keyslot(image, PASSPHRASE, NEW, kdf=PBKDF2),
        lambda: luks.convert_header(image, 2),
        lambda: begun(image),
    ):
        with pytest.raises(luks.UnfinishedReencryptionError, match=r"L21\d"):
            refused()
    with pytest.raises(luks.UnfinishedReencryptionError, match="moved"):
        luks.abort_reencryption(image, PASSPHRASE)
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.resume_reencryption(image, NEW)
    # The journal is a detached header: it opens the payload in the middle.
    with luks.open(image, OTHER, header=journal_of(image)) as volume:
        assert volume.read(0, SIZE) == PLAIN
    with luks.resume_reencryption(image, OTHER) as running:
        running.run()
    check(image)


def test_l214_what_has_not_moved_is_taken_back(image: Path) -> None:
    before = image.read_bytes()
    begun(image).close()
    assert image.read_bytes() != before
    luks.abort_reencryption(image, OTHER)
    assert image.read_bytes() == before
    check(image)
    with pytest.raises(luks.NoReencryptionError):
        luks.abort_reencryption(image, OTHER)
    with pytest.raises(luks.NoReencryptionError):
        luks.resume_reencryption(image, OTHER)


def test_l211_a_journal_that_is_missing_or_another_ones_is_an_error(
    image: Path, tmp_path: Path
) -> None:
    begun(image).close()
    journal = journal_of(image)
    away = journal.rename(tmp_path / "away")
    for call in (
        lambda: luks.reencryption_status(image),
        lambda: luks.resume_reencryption(image, OTHER),
    ):
        with pytest.raises(luks.UnfinishedReencryptionError, match=r"missing \[L211\]"):
            call()
    assert luks.reencryption_status(image, journal=away) is not None
    luks.format(journal, PASSPHRASE, size=4096, kdf=PBKDF2, key_size=32).close()
    with pytest.raises(luks.HeaderMismatchError, match="L213"):
        luks.resume_reencryption(image, PASSPHRASE)
    journal.write_bytes(bytes(1 << 20))
    with pytest.raises(luks.EmptyImageError):
        luks.resume_reencryption(image, PASSPHRASE)
    with luks.resume_reencryption(
        image, PASSPHRASE, options=luks.ReencryptionOptions(journal=away)
    ) as running:
        running.run()
    assert not away.exists()
    journal.unlink()
    check(image)


def test_l213_a_journal_of_a_state_that_is_gone_is_not_used(image: Path) -> None:
    begun(image).close()
    old = journal_of(image).read_bytes()
    with luks.resume_reencryption(image, OTHER) as running:
        running.run()
    journal_of(image).write_bytes(old)
    with pytest.raises(luks.NoReencryptionError, match="L213"):
        luks.resume_reencryption(image, OTHER)
    journal_of(image).unlink()
    check(image)


def test_l213_a_header_put_back_from_a_backup_does_not_hide_a_re_encryption(
    image: Path, tmp_path: Path
) -> None:
    luks.backup_header(image, tmp_path / "backup")
    with begun(image) as running:
        running.step()
    content = image.read_bytes()
    image.write_bytes((tmp_path / "backup").read_bytes()[:4096] + content[4096:])
    assert luks.load_header(image).version == 1
    with luks.resume_reencryption(image, OTHER) as running:
        running.run()
    check(image)


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"sector_size": 4096}, ValueError, "sectors of 512"),
        ({"kdf": ARGON2ID}, ValueError, "PBKDF2"),
        ({"kdf": "argon2id"}, ValueError, "PBKDF2"),
        ({"hash_name": "sha512"}, ValueError, "one hash"),
        ({"key_size": 64}, luks.UnsupportedError, "no room for eight keyslots"),
    ],
    ids=["sectors", "argon2", "kind", "hash", "room"],
)
def test_l212_what_luks1_cannot_have_is_refused_before_anything_is_written(
    changes: dict[str, Any], error: type[Exception], why: str, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    luks.format(
        image, PASSPHRASE, version=1, key_size=32, size=SIZE, kdf=PBKDF2, data_offset=1052672
    ).close()
    before = image.read_bytes()
    with pytest.raises(error, match=why):
        luks.begin_reencryption(image, PASSPHRASE, options=options(**changes))
    assert image.read_bytes() == before
    assert list(tmp_path.iterdir()) == [image]


def test_l164_a_keyslot_without_its_passphrase_is_lost_only_on_demand(image: Path) -> None:
    before = image.read_bytes()
    with pytest.raises(luks.PolicyError, match="keyslots 6 would vanish"):
        luks.begin_reencryption(image, PASSPHRASE, options=options())
    assert image.read_bytes() == before
    assert not journal_of(image).exists()
    luks.reencrypt(image, PASSPHRASE, options=options(drop_keyslots=True))
    assert list(luks.load_header(image).keyslots) == [0]


def test_l215_plain_payloads_have_no_luks1_header_in_between(image: Path, tmp_path: Path) -> None:
    with pytest.raises(luks.UnsupportedError, match="L215") as caught:
        luks.begin_decryption(image, PASSPHRASE, header=tmp_path / "header")
    assert "convert" in (caught.value.hint or "")


def test_l211_an_open_device_needs_a_place_for_the_journal() -> None:
    base = known_volume(1)
    device, journal = base.copy(), MemoryDevice(0)
    with pytest.raises(luks.UnsupportedError, match="L211"):
        luks.begin_reencryption(device, OTHER, options=options())
    changed = options(journal=journal)
    luks.begin_reencryption(device, OTHER, options=changed).close()
    with pytest.raises(luks.UnsupportedError, match="L211"):
        luks.reencryption_status(device)
    assert luks.reencryption_status(device, journal=journal) is not None
    with luks.resume_reencryption(device, OTHER, options=changed) as running:
        running.run()
    luks.open(device, OTHER).close()
    assert not luks.is_luks(journal)


def test_l210_eight_keyslots_and_a_detached_header(tmp_path: Path) -> None:
    """More keyslots than fit before the payload; and a header that grows for a longer key."""
    image, header = tmp_path / "image", tmp_path / "header"
    secrets = [f"passphrase {number}".encode() for number in range(8)]
    for apart in (None, header):
        with luks.format(
            image, secrets[0], version=1, key_size=32, size=SIZE, kdf=PBKDF2, header=apart
        ) as volume:
            volume.write(0, PLAIN)
        for secret in secrets[1:]:
            luks.add_keyslot(apart or image, secrets[0], secret, kdf=PBKDF2)
        changes = {} if apart is None else {"key_size": 64}
        with luks.begin_reencryption(
            image,
            secrets[3],
            header=apart,
            others=[*secrets[:3], *secrets[4:]],
            options=options(**changes),
        ) as running:
            running.step()
        assert luks.reencryption_status(image, header=apart) is not None
        with luks.resume_reencryption(image, secrets[7], header=apart) as running:
            running.run()
        for number, secret in enumerate(secrets):
            with luks.open(image, secret, keyslot=number, header=apart) as volume:
                assert volume.read(0, SIZE) == PLAIN
        image.unlink()


@pytest.mark.interop
def test_l211_cryptsetup_resumes_by_the_journal_and_we_write_the_header(
    image: Path, tmp_path: Path
) -> None:
    with begun(image) as running:
        running.step()
    key = key_file(tmp_path, PASSPHRASE)
    cryptsetup(
        *("reencrypt", "--resume-only", "--force-offline-reencrypt", "--header"),
        *(journal_of(image), "--key-file", key, image),
    )
    status = luks.reencryption_status(image)
    assert status is not None
    assert (status.position, status.needs_recovery) == (SIZE, True)
    with luks.resume_reencryption(image, OTHER) as running:
        assert running.status.is_finished
        assert read_exactly(running.volume, 0, SIZE) == PLAIN
        assert not running.step()
        with pytest.raises(luks.UnfinishedReencryptionError):
            running.take_back()
    check(image)
    assert accepts(image, key)


RUN = """
import sys, luks
from luks import ReencryptionOptions as Options
image, first, second = sys.argv[1], *(word.encode() for word in sys.argv[2:])
options = Options(hotzone_size=16 << 10, kdf=luks.Pbkdf2("sha256", 1000))
try:
    running = luks.begin_reencryption(image, first, others=[second], options=options)
except luks.UnfinishedReencryptionError:
    running = luks.resume_reencryption(image, second, options=options)
print("begun", flush=True)
running.run()
"""


def _runs(image: Path) -> Iterator[subprocess.Popen[str]]:
    arguments = (str(image), PASSPHRASE.decode(), OTHER.decode())
    while True:
        yield subprocess.Popen(
            [sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, text=True
        )


@pytest.mark.slow
def test_l210_a_process_that_is_killed_again_and_again_gets_there(image: Path) -> None:
    generator = random.Random(18)
    kills = 0
    for process in _runs(image):
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(generator.random() * 0.03)
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        if process.wait() == 0 or kills == cases(6, 200):
            break
        kills += 1
        status = luks.reencryption_status(image)
        if status is None:
            check(image)
    if luks.reencryption_status(image) is not None:
        with luks.resume_reencryption(image, OTHER) as running:
            running.run()
    check(image)
    print(f"{kills} kills")
