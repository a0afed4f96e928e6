"""The client in C (``contrib/c``), called from Python: a process that was built with sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import pytest

from tests.support.foreign import program

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "contrib" / "c"
_DRIVER = ROOT / "tests" / "owner" / "c_driver.c"
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
_SANITIZERS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
#: `BLOBSTORE_ANY`: no condition.
ANY = (1 << 64) - 1

USAGE, NO_OWNER, UNTRUSTED, LOST, BAD_REPLY, TOO_LARGE = -1, -2, -3, -4, -5, -6


class CError(Exception):
    """What the client says of a failure.

    Attributes:
        result: What the function returned.
        exit_code: Of the handle, as the next ones.
        maybe_done: Whether the change may have been made.
        kind: The class of the owner's error, or an empty text.
        message: In a form for people.
    """

    def __init__(
        self, result: int, exit_code: int, maybe_done: bool, kind: str, message: str
    ) -> None:
        super().__init__(f"{result}: {kind} {message}")
        self.result, self.exit_code, self.maybe_done = result, exit_code, maybe_done
        self.kind, self.message = kind, message


def failure(call: Callable[[], object]) -> CError:
    """Return the error that a call raises."""
    with pytest.raises(CError) as info:
        call()
    return info.value


class CSection(NamedTuple):
    """What the client says of a section."""

    written: bool
    size: int
    max_size: int
    generation: int


def build(target: Path, source: Path, *options: str) -> Path:
    """Compile the client with a program that calls it; return the program, which is ``target``."""
    command = [program("cc"), *WARNINGS, *options, f"-I{SOURCES}", "-o", str(target)]
    done = subprocess.run(
        [*command, str(source), str(SOURCES / "blobstore.c")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def build_driver(directory: Path) -> Path:
    """Compile what `CClient` runs, with sanitizers."""
    return build(directory / "c-driver", _DRIVER, "-D_DEFAULT_SOURCE", *_SANITIZERS)


class CClient:
    """One handle of the client. Its methods raise `CError`."""

    def __init__(
        self, driver: Path, environment: dict[str, str] | None = None, user: int | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [driver],
            user=user,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        _, said = self._process.communicate(timeout=60)
        assert (self._process.returncode, said) == (0, b"")  # the sanitizers' last word

    def open(
        self,
        image: str | os.PathLike[str] = "",
        path: str | os.PathLike[str] = "",
        timeout: float = 60,
    ) -> None:
        """Find the owner of an image, or connect to a path; ``timeout`` is in seconds."""
        words = _hex(str(image).encode()), _hex(str(path).encode())
        self._call("open", *words, round(timeout * 1000))

    def get(self, name: str, capacity: int = 1 << 20) -> tuple[bytes, int]:
        """Return a blob and its generation."""
        fields = self._call("get", _hex(name.encode()), capacity)
        return _bytes(fields[5]), int(fields[6])

    def put(self, name: str, blob: bytes, if_match: int = ANY) -> int:
        """Replace a blob; return its generation."""
        return int(self._call("put", _hex(name.encode()), _hex(blob), if_match)[6])

    def register(self, name: str, max_size: int, kind: str = "blob") -> CSection:
        """See that a section exists."""
        return _section(self._call("register", _hex(name.encode()), _hex(kind.encode()), max_size))

    def info(self, name: str) -> CSection:
        """Return what is known of a section."""
        return _section(self._call("info", _hex(name.encode())))

    def delete(self, name: str, if_match: int = ANY) -> None:
        """Delete a section."""
        self._call("delete", _hex(name.encode()), if_match)

    def interrupt(self, microseconds: int) -> None:
        """Have a signal arrive all the time from now on; 0 ends that."""
        self._call("interrupt", "-", microseconds)

    def close(self) -> None:
        """Close the handle."""
        self._call("close", "-")

    def _call(self, *words: object) -> list[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline().decode()
        if not line:
            _, said = self._process.communicate()
            raise AssertionError(f"the client ended: {said.decode()}")
        fields = line.split()
        result, exit_code, maybe_done = map(int, fields[:3])
        if result != 0:
            kind, message = (_bytes(field).decode() for field in fields[3:5])
            raise CError(result, exit_code, bool(maybe_done), kind, message)
        return fields


def _hex(content: bytes) -> str:
    return content.hex() or "-"


def _bytes(word: str) -> bytes:
    return b"" if word == "-" else bytes.fromhex(word)


def _section(fields: list[str]) -> CSection:
    written, size, max_size, generation = map(int, fields[7:])
    return CSection(bool(written), size, max_size, generation)
