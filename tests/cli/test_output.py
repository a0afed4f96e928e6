"""What is printed arrives, or the exit code says that it did not; never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from blobstore.cli.main import VERBS
from formats.errors import DeviceFullError
from tests.support.cli import succeeds

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
BLOB = os.urandom(99_999)

#: Commands that print something and change nothing, by what they print.
PRINTING = [
    "--help",
    "--version",
    "ls image K",
    "ls image --json K",
    "info image K",
    "info image --json K",
    "get image a K",
    "get image a -o - K",
    "get image a -o /dev/stdout K",
    "export image - --to raw --name a K",
    "show image small --type raw K",
    "show image small --type raw --json K",
    "diff image other --json K",
    "diff image other K",
    "verify image K",
    "verify image --items K",
    "verify image --json K",
    "key list image",
    "key list image --json",
    "header dump image",
    "header dump image --json",
    "token list image --json",
    "snapshot list disk --json",
    "snapshot list disk",
    "check disk --json",
    "measure --size 1M --json",
    "pack --schema",
    "vtpm image --print-states K",
    "vtpm --print-capabilities",
]
#: Commands that print nothing; what they do is done, whatever becomes of their streams.
SILENT = ["put image a blob K", "put image a blob K", "rm image small K"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("output")
    kdf = luks.Pbkdf2("sha256", 1000)
    (path / "key").write_bytes(b"secret")
    (path / "blob").write_bytes(BLOB)
    sections = {"a": len(BLOB), "small": 100}
    for name in ("image", "other"):
        with blobstore.create(path / name, sections, b"secret", kdf=kdf) as store:
            store.put("a", BLOB)
            store.put("small", name.encode())
    succeeds("create", path / "disk", "--format", "qcow2", "--no-encryption")
    succeeds("snapshot", "create", path / "disk", "before")
    return path


def run(
    command: str, files: Path, redirections: str, environment: Mapping[str, str] | None = None
) -> tuple[int, bytes, bytes]:
    """Run a command through the shell; return its exit code, and what came of both streams."""
    words = command.replace(" K", " --key-file key").split()
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "blobstore", *words],
        cwd=files,
        env={"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert b"Exception ignored" not in done.stderr, done.stderr.decode()
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", PRINTING)
def test_what_is_not_printed_is_no_success(files: Path, command: str) -> None:
    code, printed, said = run(command, files, "")
    assert (code, said) == (0, b"")
    assert printed
    code, _, said = run(command, files, ">/dev/full")
    assert (code, said.count(b"\n")) == (21, 1), said
    assert b"No space left on device" in said
    # Opened by its name, a descriptor that was closed is not there at all.
    closed = 20 if "/dev/stdout" in command else 21
    code, _, said = run(command, files, ">&-")
    assert (code, said.count(b"\n")) == (closed, 1), said
    assert run(command, files, "2>/dev/full >/dev/full")[0] == 21
    assert run(command, files, "<&- >&- 2>&-")[0] == closed
    assert run(command, files, "<&- 2>&-") == (0, printed, b"")


@pytest.mark.parametrize("command", PRINTING)
def test_a_reader_that_goes_away_is_no_error_to_speak_of(files: Path, command: str) -> None:
    words = command.replace(" K", " --key-file key").split()
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "blobstore", *words],
            cwd=files,
            env={"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (20 if "/dev/stdout" in command else 141, done.stderr)
    assert done.stderr == b"" or "/dev/stdout" in command


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_each_verb_is_printed_or_not(files: Path, verb: str) -> None:
    assert run(f"{verb} --help", files, ">/dev/full")[0] == 21
    assert run(f"{verb} --help", files, ">&-")[0] == 21


@pytest.mark.parametrize("instruction", ["bash_source", "zsh_source", "bash_complete"])
def test_a_completion_is_printed_or_not(files: Path, instruction: str) -> None:
    environment = {
        "_BLOBSTORE_COMPLETE": instruction,
        "COMP_WORDS": "blobstore ver",
        "COMP_CWORD": "1",
        "PATH": os.environ["PATH"],
    }
    for redirection, code in ((">/dev/null", 0), (">/dev/full", 21), (">&-", 21)):
        assert run("", files, redirection, environment)[0] == code


@pytest.mark.parametrize("redirections", [">/dev/full", "2>/dev/full", "<&- >&- 2>&-"])
def test_what_a_verb_does_needs_no_streams(files: Path, redirections: str) -> None:
    (files / "image").write_bytes((files / "other").read_bytes())
    for command in SILENT:
        assert run(command, files, redirections) == (0, b"", b"")
    with blobstore.open(files / "image", b"secret") as store:
        assert store.verify().ok
        assert list(store) == ["a"]
        assert store.get("a") == BLOB
    (files / "image").write_bytes((files / "other").read_bytes())


@pytest.mark.parametrize(
    ("command", "code"),
    [("get image none K", 61), ("ls missing", 20), ("nonsense", 2), ("get image", 2)],
)
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_an_error_that_cannot_be_printed_keeps_its_code(
    files: Path, command: str, code: int, redirection: str
) -> None:
    assert run(command, files, redirection) == (code, b"", b"")


@pytest.mark.parametrize("redirection", ["<&-", "0>/dev/null"])
def test_a_stdin_that_cannot_be_read_is_no_empty_blob(files: Path, redirection: str) -> None:
    (files / "image").write_bytes((files / "other").read_bytes())
    before = (files / "image").read_bytes()
    assert run("put image a - K", files, redirection)[0] == 20
    if redirection == "<&-":
        assert run("put image a /dev/stdin K", files, redirection)[0] == 2
    assert run("import image - --from raw --name new K", files, redirection)[0] == 20
    assert run("ls image --key-file -", files, redirection)[0] == 52
    assert (files / "image").read_bytes() == before


def test_an_output_that_is_full_is_no_success(files: Path) -> None:
    for command in ("get image a -o", "export image --to raw --name a"):
        code, _, said = run(f"{command} /dev/full --force K", files, "")
        assert (code, b"/dev/full" in said) == (21 if "get" in command else 20, True), said
    with (
        blobstore.open(files / "image", b"secret", read_only=True) as store,
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(DeviceFullError),
    ):
        blobstore.export_state(store, full, "raw", name="a")


def test_stdout_that_does_not_wait_is_waited_for(files: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(reading, "rb") as pipe:
        words = ["get", "image", "a", "--key-file", "key"]
        with subprocess.Popen(
            [sys.executable, "-m", "blobstore", *words],
            cwd=files,
            env={"PYTHONPATH": str(ROOT)},
            stdout=writing,
            stderr=subprocess.PIPE,
        ) as process:
            os.close(writing)
            time.sleep(1)  # until the pipe is full
            assert pipe.read() == BLOB
            assert process.stderr
            assert process.stderr.read() == b""
    assert process.returncode == 0
