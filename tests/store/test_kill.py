"""A real process is killed at random instants: no acknowledged commit is lost.

The process puts into an encrypted image on a real file system, every fourth time
into all sections at once, and says so after each commit. What it said is what
must be there after the kill; one commit more may be.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import blobstore
import luks
from tests.support.effort import cases
from tests.support.stores import contents

if TYPE_CHECKING:
    from pathlib import Path

SECRET = b"kill test"
ACKNOWLEDGED_COMMITS = 1200
SECTIONS = {"small": 100, "tpm-permanent-state": 70_000, "uefi-variables": 20_000}

PROCESS = """
import sys
import blobstore
from tests.store.test_kill import SECRET, blob, names_of
number = int(sys.argv[2])
store = blobstore.open(sys.argv[1], SECRET)
print("open", flush=True)
while True:
    number += 1
    names = names_of(number)
    if len(names) == 1:
        store.put(names[0], blob(names[0], number))
    else:
        with store.transaction() as changes:
            for name in names:
                changes.put(name, blob(name, number))
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def names_of(number: int) -> list[str]:
    """Return the sections that a commit puts into."""
    names = list(SECTIONS)
    return names if number % 4 == 0 else [names[number % len(names)]]


def blob(name: str, number: int) -> bytes:
    generator = random.Random(number)
    return number.to_bytes(8, "big") + generator.randbytes(generator.randrange(SECTIONS[name] - 8))


def expected(number: int) -> dict[str, bytes]:
    """Return what the sections hold after that commit."""
    latest = {}
    for commit in range(max(number - 4, 0), number + 1):
        latest.update(dict.fromkeys(names_of(commit), commit))
    return {name: blob(name, commit) for name, commit in latest.items()}


def test_no_acknowledged_commit_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    image = tmp_path / "image"
    kdf = luks.Pbkdf2("sha256", 1000)
    with blobstore.create(image, SECTIONS, SECRET, kdf=kdf) as store:
        for name in SECTIONS:
            store.put(name, blob(name, 0))
    last = 0
    generator = random.Random(20261120)
    kills = in_flight = 0
    # On a busy machine a process has not made many commits yet when it is killed.
    while last < ACKNOWLEDGED_COMMITS and kills < cases(120, 1000):
        acknowledged = _run_and_kill(image, last, generator.uniform(0.0005, 0.03))
        kills += 1
        with blobstore.open(image, SECRET, read_only=True) as store:
            found = contents(store)
        assert found in (expected(acknowledged), expected(acknowledged + 1)), kills
        in_flight += found != expected(acknowledged)
        last = acknowledged + (found != expected(acknowledged))
    with blobstore.open(image, SECRET) as store:
        assert store.verify().ok
        assert contents(store) == expected(last)
    assert kills >= 20
    assert last > kills


def _run_and_kill(image: Path, last: int, after: float) -> int:
    """Let a process put until it is killed; return the last commit it acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(image), str(last)], stdout=subprocess.PIPE
    )
    assert process.stdout
    with process.stdout as answers:
        assert answers.readline() == b"open\n"
        time.sleep(after)
        process.kill()
        lines = answers.read().split(b"\n")
    process.wait()
    # What follows the last newline was not acknowledged in full.
    return int(lines[-2]) if len(lines) > 1 else last
