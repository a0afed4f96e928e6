"""Running the command line as its users do: as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Options that make unlocking cheap.
QUICK = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")


def without_override() -> list[str]:
    """Return what to run before a command so that file modes hold for it, even as root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]


def with_signals(*, default: Sequence[str] = (), ignored: Sequence[str] = ()) -> list[str]:
    """Return what to run before a command so that it starts with these signals so.

    A program inherits which signals are ignored, and the tests may be anywhere: with
    SIGINT ignored in the background of a script, with SIGHUP under `nohup`. So a test
    that sends a signal says how the program starts.

    Args:
        default: Names as `kill` has them, such as "INT", of those that are not ignored.
        ignored: Names of those that are.
    """
    return [
        "env",
        *(f"--default-signal={name}" for name in default),
        *(f"--ignore-signal={name}" for name in ignored),
    ]


def blobstore(
    *arguments: object, stdin: bytes = b"", pass_fds: Sequence[int] = (), cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run ``blobstore`` with these arguments; its output is captured, its code is not judged."""
    return subprocess.run(
        [sys.executable, "-m", "blobstore", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        pass_fds=pass_fds,
        cwd=cwd,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "LC_ALL": "C.UTF-8"},
        timeout=120,
        check=False,
    )


def succeeds(*arguments: object, stdin: bytes = b"", cwd: Path | None = None) -> bytes:
    """Run ``blobstore``, which must succeed and say nothing on stderr; return its stdout."""
    done = blobstore(*arguments, stdin=stdin, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, b""), (arguments, done)
    return done.stdout


def fails(*arguments: object, stdin: bytes = b"", cwd: Path | None = None) -> int:
    """Run ``blobstore``, which must fail with a message and no traceback; return its exit code."""
    done = blobstore(*arguments, stdin=stdin, cwd=cwd)
    assert done.returncode, (arguments, done)
    assert done.stderr
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode
