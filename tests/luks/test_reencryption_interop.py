"""Re-encryptions pass from hand to hand between this project and the real cryptsetup."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice, read_exactly
from tests.luks.programs import CHEAP, cryptsetup, key_file
from tests.luks.reencryption_support import (
    CASES,
    KIB,
    PLAIN,
    Case,
    Content,
    by_name,
    options,
    payload,
)
from tests.luks.support import PASSPHRASE, PBKDF2, pattern, shared_corpus
from tests.luks.test_shared_corpus import archive_members, corpus_rows
from tests.support.effort import cases

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MIB = 1 << 20


@pytest.mark.parametrize("case", CASES, ids=str)
def test_l150_cryptsetup_resumes_what_was_begun_here(case: Case, tmp_path: Path) -> None:
    """L150 to L153: cut after any write, also within a step, after cryptsetup's own repair."""
    cuts = list(case.recorded.cuts())
    chosen = random.Random(18).sample(cuts, min(len(cuts), cases(2, 10**6)))
    key = key_file(tmp_path, PASSPHRASE)
    for content in (case.recorded.begun, *chosen):
        after = _resumed_by_cryptsetup(content, key, tmp_path)
        assert luks.load_header(case.place(after)).requirements == ()
        assert payload(after, case.size) == case.plain


def _resumed_by_cryptsetup(content: Content, key: Path, directory: Path) -> Content:
    image, header = directory / "image", directory / "header"
    image.write_bytes(content.image)
    places: list[object] = [image]
    if content.header is not None:
        header.write_bytes(content.header)
        places += ["--header", header]
    if luks.load_header(places[-1]).requirements:  # type: ignore[arg-type]
        cryptsetup("repair", "--key-file", key, *places)
    # Repairing the last zone may have finished it.
    if luks.load_header(places[-1]).requirements:  # type: ignore[arg-type]
        resume = ("reencrypt", "--resume-only", "--force-offline-reencrypt")
        cryptsetup(*resume, "--key-file", key, *places)
    return Content(image.read_bytes(), None if content.header is None else header.read_bytes())


@pytest.mark.parametrize("mode", ["reencrypt", "encrypt", "encrypt-detached", "decrypt"])
def test_l154_what_cryptsetup_has_begun_is_resumed_here(mode: str, tmp_path: Path) -> None:
    """L154: a run that cryptsetup has only initialised."""
    image, header, key = tmp_path / "image", tmp_path / "header", key_file(tmp_path, PASSPHRASE)
    plain = pattern(mode, 256 * KIB)
    detached = mode in {"encrypt-detached", "decrypt"}
    made: tuple[object, ...] = ("--cipher=aes-xts-plain64", "--key-size=256", *CHEAP["pbkdf2"])
    small = ("--luks2-keyslots-size=512k", "--luks2-metadata-size=16k")
    if mode.startswith("encrypt"):
        image.write_bytes(plain)
        where: tuple[object, ...] = ("--header", header)
        if not detached:
            os.truncate(image, 256 * KIB + 2 * MIB)
            where = ("--reduce-device-size=2M",)
        begin = ("reencrypt", "--encrypt", "--type=luks2", *made, *small, *where)
    else:
        luks.format(image, PASSPHRASE, kdf=PBKDF2, size=len(plain), keyslots_size=480 * KIB).close()
        with luks.open(image, PASSPHRASE, read_only=False) as opened:
            opened.write(0, plain)
        begin = ("reencrypt", *made)
        if mode == "decrypt":
            begin = ("reencrypt", "--decrypt", "--header", header)
    begin += ("--init-only", "--force-offline-reencrypt", "--key-file", key, image)
    cryptsetup(*begin)
    place = header if detached else None
    with luks.resume_reencryption(image, PASSPHRASE, header=place, options=options()) as running:
        assert running.status.position == 0
        running.step()
        assert read_exactly(running.volume, 0, len(plain)) == plain
        running.run()
        assert running.status.is_finished
    if mode == "decrypt":
        assert image.read_bytes() == plain
    else:
        with luks.open(image, PASSPHRASE, header=place) as opened:
            assert opened.read(0, len(plain)) == plain
        cryptsetup("open", "--test-passphrase", "--key-file", key, place or image)


@pytest.mark.skipif(shared_corpus() is None, reason="there is no shared/corpus beside it")
@pytest.mark.parametrize(
    "row", corpus_rows("interop/cs-reencrypt/states.tsv"), ids=lambda row: row["header_file"]
)
def test_l154_every_state_of_the_corpus_is_resumed(row: dict[str, Any]) -> None:
    """L154: runs of cryptsetup, cut at every kind of place."""
    members = archive_members(f"interop/{row['archive']}")
    image = MemoryDevice(members[row["data_file"]])
    header = None
    if row["header_file"] != row["data_file"]:
        header = MemoryDevice(members[row["header_file"]])
    secret, size = row["passphrase"].encode(), int(row["plain_length"])
    status = luks.reencryption_status(image, header=header)
    assert status is not None
    assert status.needs_recovery == (row["safe"].startswith("hot zone"))
    (keyslot,) = json.loads(row["reencrypt_keyslot"]).values()
    assert (status.mode, status.direction) == (keyslot["mode"], keyslot["direction"])
    with luks.resume_reencryption(image, secret, header=header) as running:
        before = _digest(read_exactly(running.volume, 0, size))
        running.run()
        after = _digest(read_exactly(running.volume, 0, size))
    # With resilience none, what was moved since the header was last written is lost.
    kept = row["plain_after_resume_ok"] == "True"
    assert (before == row["plain_sha256"], after == row["plain_sha256"]) == (kept, kept)
    place = image if header is None else header
    assert luks.load_header(place).requirements == ()
    if status.mode != "decrypt":
        with luks.open(image, secret, header=header) as opened:
            assert _digest(opened.read(0, size)) == after


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_l162_it_stops_when_cryptsetup_has_changed_the_header(tmp_path: Path) -> None:
    """L162: a step is not taken over the change of another program."""
    case, image = by_name("checksum-4096"), tmp_path / "image"
    image.write_bytes(case.before.image)
    key = key_file(tmp_path, PASSPHRASE)
    with luks.begin_reencryption(image, PASSPHRASE, options=options()) as running:
        running.step()
        cryptsetup(
            "reencrypt", "--resume-only", "--force-offline-reencrypt", "--key-file", key, image
        )
        assert luks.load_header(image).requirements == ()
        with pytest.raises(luks.DeviceBusyError, match="L162"):
            running.step()
    with luks.open(image, PASSPHRASE) as opened:
        assert opened.read(0, case.size) == case.plain


_WORKER = """
import sys
import luks
image, mode, header = sys.argv[1:4]
options = luks.ReencryptionOptions(hotzone_size=32 << 10, kdf=luks.Pbkdf2("sha256", 1000))
place = header or None
if mode == "resume":
    running = luks.resume_reencryption(image, b"correct horse", header=place, options=options)
elif mode == "reencrypt":
    running = luks.begin_reencryption(image, b"correct horse", options=options)
elif mode == "encrypt":
    running = luks.begin_encryption(image, b"correct horse", options=options)
else:
    running = luks.begin_decryption(image, b"correct horse", header=place, options=options)
with running:
    print("begun", flush=True)
    running.run()
"""


@pytest.mark.parametrize("mode", ["reencrypt", "encrypt", "decrypt"])
def test_l151_a_process_that_is_killed_again_and_again_loses_nothing(
    mode: str, tmp_path: Path
) -> None:
    """L151: SIGKILL at random instants, until one process reaches the end."""
    image, header = tmp_path / "image", tmp_path / "header"
    plain = pattern(mode, cases(2 * MIB, 32 * MIB))
    if mode == "encrypt":
        image.write_bytes(plain)
    else:
        with luks.format(image, PASSPHRASE, kdf=PBKDF2, size=len(plain)) as opened:
            opened.write(0, plain)
    place = str(header) if mode == "decrypt" else ""
    kills, generator = 0, random.Random(mode)
    now = mode
    while True:
        worker = subprocess.Popen(
            [sys.executable, "-c", _WORKER, image, now, place],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert worker.stdout is not None
        begun = worker.stdout.readline()
        if not begun:
            _, message = worker.communicate()
            pytest.fail(message.decode())
        now = "resume"
        if kills < cases(4, 1000):
            time.sleep(generator.uniform(0, 0.05))
            worker.send_signal(signal.SIGKILL)
        _, message = worker.communicate()
        if worker.returncode == 0:
            break
        assert worker.returncode == -signal.SIGKILL, message
        kills += 1
        if _is_over(image, place):
            break
    if mode == "decrypt":
        assert image.read_bytes()[: len(plain)] == plain
    else:
        with luks.open(image, PASSPHRASE, policy=PLAIN) as opened:
            assert opened.read(0, len(plain)) == plain


def _is_over(image: Path, header: str) -> bool:
    return luks.reencryption_status(image, header=header or None) is None
