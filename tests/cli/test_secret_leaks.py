"""Every command with a marked secret, watched by strace: the secret is nowhere. S1, S2.

strace shows what is passed to each program that is run, what is written to
anything and what files are called. What is read is not shown: there the secret is.
"""

from __future__ import annotations

import base64
import ctypes
import os
import pty
import re
import select
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import blobstore as library
import luks
from blobstore.cli.main import VERBS
from tests.support.cli import QUICK
from tests.support.foreign import program
from tests.support.leaks import MARKER, MASTER, leaking_files, leaks, traced_leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
KDF = luks.Pbkdf2("sha256", 1000)
IV = bytes(16)
WATCHED = "%process,%file,%network,write,pwrite64,writev,pwritev,pwritev2,add_key,memfd_create"


@dataclass
class Way:
    """How the secret is given; ``keys`` has it, and is not searched."""

    keys: Path
    name: str
    descriptors: list[int] = field(default_factory=list)
    serial: int = 0

    def options(self, whose: str = "") -> list[str]:
        """Return what names the secret, of the image or of another one."""
        if self.name == "prompt":
            return []
        option, value = self._named()
        return [f"--{whose}{option}", value]

    def _named(self) -> tuple[str, str]:
        match self.name:
            case "file":
                return "key-file", f"{self.keys}/plain"
            case "fd":
                self.descriptors.append(os.open(self.keys / "plain", os.O_RDONLY))
                return "key-fd", str(self.descriptors[-1])
            case "command":
                return "key-command", f"cat {self.keys}/plain"
            case "credential":
                return "key-credential", "plain"
        return "key-secret", "sec0"

    @property
    def objects(self) -> list[str]:
        """Return the definitions, for a command that has several secrets once."""
        encoded = base64.b64encode(_sealed()).decode()
        iv = base64.b64encode(IV).decode()
        defined = {
            "base64": [f"secret,id=sec0,file={self.keys}/base64,format=base64"],
            "encrypted": [
                f"secret,id=m,file={self.keys}/master,format=base64",
                f"secret,id=sec0,keyid=m,iv={iv},data={encoded},format=base64",
            ],
            "keyring": [f"secret_keyring,id=sec0,serial={self.serial}"],
        }.get(self.name, [f"secret,id=sec0,file={self.keys}/plain"])
        return [word for one in defined for word in ("--object", one)]


def _sealed() -> bytes:
    count = 16 - len(MARKER) % 16
    encryptor = Cipher(algorithms.AES(MASTER), modes.CBC(IV)).encryptor()
    return encryptor.update(MARKER + bytes([count]) * count) + encryptor.finalize()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.mkdir()
    assert len(MASTER) == 32
    (path / "plain").write_bytes(MARKER)
    (path / "base64").write_bytes(base64.b64encode(MARKER))
    (path / "master").write_bytes(base64.b64encode(MASTER))
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    (path / "tmp").mkdir(parents=True)
    (path / "payload").write_bytes(b"a payload of no importance")
    library.create(path / "foreign", {"a": 100}, b"of somebody else", kdf=KDF, free=0).close()
    damaged = path / "damaged"
    library.create(damaged, {"a": 100}, b"of somebody else", kdf=KDF, free=0).close()
    with damaged.open("r+b") as file:
        for offset in (5000, 16384 + 5000):
            file.seek(offset)
            file.write(b"damage")
    (path / "cut").write_bytes((path / "foreign").read_bytes()[:600_000])
    library.create(path / "clear", {"a": 100}, encrypted=False, free=1 << 20).close()
    return path


@pytest.fixture
def serial() -> Iterator[int]:
    """A key with the secret in the session's keyring, which the commands inherit."""
    library_ = ctypes.CDLL("libkeyutils.so.1", use_errno=True)
    session = ctypes.c_int32(-3)
    added = library_.add_key(b"user", b"blobstore-test:leaks", MARKER, len(MARKER), session)
    if added < 0:
        reason = os.strerror(ctypes.get_errno())
        pytest.skip(f"this kernel permits no keys, as some containers do not: {reason}")
    yield added
    library_.keyctl_unlink(ctypes.c_int32(added), session)


#: What is run, one after the other, and the code it ends with. K stands for what
#: names the secret, U too where nobody is asked for it, N and O for what names that
#: of a new and of another image.
Command = tuple[int, str]
COMMANDS: list[Command] = [
    (0, "create image --size 3MiB --section a=100 --section b=100 QUICK K"),
    (69, "create image --section a=100 QUICK K"),
    (0, "put image a payload K"),
    (0, "put image a payload K"),
    (0, "restore image a K"),
    (0, "show image a --type raw --json K"),
    (0, "edit image a fill=1 --type raw K"),
    (0, "get image a -o got K"),
    (61, "get image unknown -o never K"),
    (0, "ls image --json K"),
    (0, "info image --json K"),
    (75, "info image --at-least-generation 999 K"),
    (0, "mv image b c K"),
    (0, "resize image c 200 K"),
    (0, "rm image c K"),
    (0, "grow image 4MiB K"),
    (0, "compact image K"),
    (0, "backup image copied K"),
    (0, "clone image cloned QUICK K N"),
    (0, "diff image cloned K O"),
    (0, "convert image converted --to luks1 QUICK K N"),
    (0, "convert image decrypted --to raw K"),
    (0, "import image payload --from raw --name r --max-size 100 K"),
    (0, "export image exported --to raw --name r K"),
    (0, "verify image --items --json K"),
    (0, "verify image --repair K"),
    (0, "scrub image K"),
    (0, "unpack image -o unpacked K"),
    (0, "pack unpacked/manifest.toml -o packed QUICK K"),
    (0, "key list image"),
    (0, "key test image K"),
    (0, "key add image QUICK K N"),
    (0, "key change image QUICK K N"),
    (0, "key export image -o volume-key --force K"),
    (0, "key remove image K"),
    (51, "key test foreign K"),
    (0, "header dump image --json"),
    (0, "header backup image saved"),
    (0, "token list image"),
    (0, 'amend image --json {"state":"active","new-secret":"sec0","keyslot":5} OBJECTS K'),
    (51, "get foreign a -o never K"),
    (51, "put foreign a payload K"),
    (51, "verify foreign --repair K"),
    (51, "clone foreign missing QUICK K N"),
    (35, "get damaged a -o never K"),
    (35, "verify damaged --repair U"),
    (51, "get cut a -o never K"),
    (20, "get missing a -o never U"),
    (53, "get clear a -o never U"),
    (2, "get image U"),
    (0, "vtpm image --print-states K"),
    (20, "vtpm image --flags startup-clear --server type=unixio,fd=99 K"),
    (51, "vtpm foreign --flags startup-clear --port 1 K"),
    (20, "serve image --socket missing/socket K"),
    (51, "serve foreign K"),
    (20, "owner show image"),
    (0, "luks dump image"),
    (0, "luks format formatted --size 64KiB QUICK K"),
    (0, "copy image whole"),
    (20, "mount image missing K"),
    (51, "mount foreign missing K"),
    (32, "check image"),
    (32, "snapshot list image"),
    (0, "measure image --luks"),
    (0, "benchmark --only cipher --seconds 0.01"),
    (2, "get image a --wrong U"),
    (51, "reencrypt foreign K"),
    (51, "decrypt foreign K"),
    (0, "encrypt clear --header apart QUICK K"),
]
WAYS = ("file", "fd", "base64", "encrypted", "keyring", "credential", "command", "prompt")


def test_all_verbs_are_watched() -> None:
    assert {line.split()[0] for _, line in COMMANDS} >= set(VERBS)


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.parametrize("name", WAYS)
def test_s2_no_command_leaves_a_trace_of_a_secret(
    name: str, keys: Path, work: Path, request: pytest.FixtureRequest
) -> None:
    way = Way(keys, name)
    searched: dict[Path, object] = {}
    if name == "keyring":
        way.serial = request.getfixturevalue("serial")
    for code, line in COMMANDS:
        if line.split()[0] not in VERBS:
            continue
        asks = name == "prompt" and {"K", "N", "O"} & set(line.split())
        if name == "prompt" and "clear" in line:
            continue  # succeeds without a secret
        blobstore = [sys.executable, "-m", "blobstore", *_arguments(way, line)]
        watched = Watched(blobstore, way, work)
        assert watched.code == code, (line, watched.shown)
        assert not watched.leaks(), line
        assert not leaking_files(work, searched), line
        assert bool(asks) == watched.asked, line


class Watched:
    """A command that was run to its end, with all that could be seen of it."""

    def __init__(self, command: list[str], way: Way, work: Path) -> None:
        self.traces = work.parent / "traces"
        self.traces.mkdir(exist_ok=True)
        for trace in self.traces.iterdir():
            trace.unlink()
        strace = [program("strace"), "-ff", "--seccomp-bpf", "-qq", "-v", "-xx", "-s", "99999999"]
        strace += ["-e", f"trace={WATCHED}", "-o", str(self.traces / "of")]
        environment = {
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C.UTF-8",
            "TMPDIR": str(work / "tmp"),
            "HOME": str(work),
            "CREDENTIALS_DIRECTORY": str(way.keys),
        }
        self.code, self.shown, self.asked = _run_at_terminal(
            [*strace, *command], work, environment, way.descriptors
        )
        while way.descriptors:
            os.close(way.descriptors.pop())

    def leaks(self) -> list[str]:
        """Say where the secret is seen, but in what the key command itself prints."""
        found = [f"shown: {form}" for form in leaks(self.shown)]
        traces = list(self.traces.iterdir())
        assert traces, "strace has written nothing"
        for trace in traces:
            data = trace.read_bytes()
            ran = re.findall(rb'^execve\("((?:\\x[0-9a-f]{2})*)"', data, re.MULTILINE)
            if ran and bytes.fromhex(ran[-1].decode().replace("\\x", "")).endswith(b"/cat"):
                data = re.sub(rb"^write\(1, .*$", b"", data, flags=re.MULTILINE)
            found += [f"traced: {form}" for form in traced_leaks(data)]
        return found


def _arguments(way: Way, line: str) -> list[str]:
    words: list[str] = []
    for word in line.split():
        match word:
            case "K" | "U":
                needs = way.name in {"base64", "encrypted", "keyring"} and "OBJECTS" not in line
                words += [*(way.objects if needs else ()), *way.options()]
            case "N":
                words += way.options("new-")
            case "O":
                words += way.options("other-")
            case "QUICK":
                words += QUICK
            case "OBJECTS":
                words += way.objects
            case _:
                words.append(word)
    return words


def _run_at_terminal(
    command: list[str], work: Path, environment: dict[str, str], descriptors: list[int]
) -> tuple[int, bytes, bool]:
    """Run a command on a terminal of its own, and answer what it asks with the secret.

    Returns its code, what the terminal showed and whether it asked.
    """
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        # setsid makes the terminal the one that is asked.
        ["setsid", "--ctty", "--wait", *command],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        cwd=work,
        env=environment,
        pass_fds=descriptors,
    )
    os.close(inner)
    shown, answered, deadline = b"", 0, time.monotonic() + 60
    try:
        with suppress(OSError):  # what Linux says when the last user is gone
            while True:
                assert select.select([terminal], [], [], deadline - time.monotonic())[0], shown
                chunk = os.read(terminal, 1 << 16)
                shown += chunk
                if not chunk:
                    break
                if re.search(rb"assphrase[^\n]* for [^\n]*: \Z", shown) and len(shown) > answered:
                    answered = len(shown)
                    os.write(terminal, MARKER + b"\n")
        return process.wait(20), shown, bool(answered)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


@pytest.mark.interop
@pytest.mark.parametrize(
    "leak",
    [
        pytest.param(lambda k: ["/bin/sh", "-c", f"exec cat {k}/plain"], id="on the terminal"),
        pytest.param(lambda k: ["/bin/sh", "-c", f"cat {k}/base64 >file"], id="in a file"),
        pytest.param(
            lambda k: ["/bin/sh", "-c", f"X=$(cat {k}/plain) exec true"], id="environment"
        ),
        pytest.param(lambda k: ["/bin/sh", "-c", f"/bin/true $(cat {k}/plain)"], id="argument"),
        pytest.param(lambda k: ["/bin/sh", "-c", f"touch $(cat {k}/plain)"], id="file name"),
    ],
)
def test_a_leak_would_be_seen(leak: Callable[[Path], list[str]], keys: Path, work: Path) -> None:
    watched = Watched(leak(keys), Way(keys, "file"), work)
    assert watched.code == 0, watched.shown
    assert watched.leaks() + leaking_files(work)
