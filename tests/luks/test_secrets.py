"""Secrets do not show, and come from files, descriptors and terminals as they should."""

from __future__ import annotations

import copy
import os
import pickle
import pty
import select
import subprocess
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import luks
from luks.secret.secrets import MAX_KEY_FILE_SIZE, Secret, view_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLEAR = "open sesame"


def test_a_secret_shows_nowhere() -> None:
    secret = Secret(CLEAR.encode())
    assert CLEAR not in f"{secret!r} {secret} {secret:}"
    assert repr([secret]) == "[<Secret>]"


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_is_not_copied_by_accident(copied: Callable[[object], object]) -> None:
    with pytest.raises(TypeError):
        copied(Secret(CLEAR.encode()))


def test_wiping_overwrites_the_memory() -> None:
    buffer = bytearray(CLEAR.encode())
    secret = Secret.adopt(buffer)
    view = secret.view()
    secret.wipe()
    secret.wipe()
    assert buffer == bytes(len(CLEAR))
    assert bytes(view) == bytes(len(CLEAR))
    with pytest.raises(ValueError, match="wiped"):
        secret.view()


def test_a_block_wipes_when_it_ends_and_when_it_fails() -> None:
    secret = Secret(CLEAR.encode())
    with pytest.raises(ZeroDivisionError), secret:
        1 / 0  # noqa: B018
    with pytest.raises(ValueError, match="wiped"):
        len(secret)


def test_a_secret_has_a_copy_of_what_it_was_made_of() -> None:
    source = bytearray(CLEAR.encode())
    secret = Secret(source)
    source[:] = bytes(len(source))
    assert bytes(secret.view()) == CLEAR.encode()
    assert len(secret) == len(CLEAR)


def test_the_view_cannot_be_written() -> None:
    with pytest.raises(TypeError):
        Secret(b"x").view()[0] = 0


@pytest.mark.parametrize("wrong", ["text", None, 5, ["x"]])
def test_only_bytes_are_secrets(wrong: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="bytes"):
        Secret(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"luks\.Secret"):
        view_of(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"luks\.Secret"):
        luks.format(tmp_path / "new", wrong, size=4096)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"pw\n", b"\n\n", bytes(range(256)), b"\0" * 7])
def test_a_key_file_is_taken_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    assert bytes(Secret.from_file(path).view()) == content
    with path.open("rb") as file:
        assert bytes(Secret.from_fd(file.fileno()).view()) == content
        assert file.closed is False


def test_a_pipe_is_read_to_its_end() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"first ")
    os.write(writer, b"second\n")
    os.close(writer)
    assert bytes(Secret.from_fd(reader).view()) == b"first second\n"
    os.close(reader)


def test_a_key_file_has_at_most_8_mib(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"x" * MAX_KEY_FILE_SIZE)
    assert len(Secret.from_file(path)) == 8 << 20
    path.write_bytes(b"x" * (MAX_KEY_FILE_SIZE + 1))
    with pytest.raises(luks.SecretRequiredError, match="not a key file"):
        Secret.from_file(path)


def test_a_key_file_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(luks.SecretRequiredError, match="No such file"):
        Secret.from_file(tmp_path / "missing")
    with pytest.raises(luks.SecretRequiredError, match="directory"):
        Secret.from_file(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(luks.SecretRequiredError, match="Bad file descriptor"):
        Secret.from_fd(reader)


def test_no_secret_is_in_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "image"
    luks.format(path, b"right", size=4096, kdf=luks.Pbkdf2("sha256", 1000)).close()
    try:
        luks.open(path, Secret(CLEAR.encode()))
    except luks.NoKeyslotMatchError as error:
        lines = traceback.TracebackException.from_exception(error, capture_locals=True).format()
        assert CLEAR not in "".join(lines)
    else:
        pytest.fail("it opened with a wrong passphrase")


def _at_terminal(script: str, answers: list[tuple[bytes, bytes]]) -> tuple[str, int]:
    """Run a script on a terminal of its own and answer its questions.

    Returns what the terminal showed and the exit status.
    """
    terminal, inner = pty.openpty()
    take_it = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", take_it + script],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    )
    os.close(inner)
    shown = b""
    try:
        for question, answer in answers:
            while not shown.endswith(question):
                assert select.select([terminal], [], [], 20)[0], f"no question; only {shown!r}"
                shown += os.read(terminal, 1024)
            os.write(terminal, answer)
        with suppress(OSError):  # what Linux says when the last user is gone
            while chunk := os.read(terminal, 1024):
                shown += chunk
        return shown.decode(), process.wait(20)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


ASK = "import luks; print(len(luks.Secret.from_terminal('Pass: ', confirm={confirm})))"


def test_the_terminal_does_not_echo_and_strips_one_newline() -> None:
    shown, status = _at_terminal(ASK.format(confirm=False), [(b"Pass: ", b"open sesame\n")])
    assert CLEAR not in shown
    assert shown.split() == ["Pass:", "11"]
    assert status == 0


def test_a_new_passphrase_is_asked_for_twice() -> None:
    answers = [(b"Pass: ", b"open sesame\n"), (b"Again: Pass: ", b"open sesame\n")]
    shown, status = _at_terminal(ASK.format(confirm=True), answers)
    assert shown.split()[-1] == "11"
    assert status == 0


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(b"Pass: ", b"open sesame\n"), (b"Again: Pass: ", b"open sesamy\n")], "differ"),
        ([(b"Pass: ", b"\x04")], "closed before"),
        ([(b"Pass: ", b"x" * 513 + b"\n")], "at most 512"),
    ],
)
def test_terminal_input_that_is_no_passphrase(
    answers: list[tuple[bytes, bytes]], message: str
) -> None:
    script = """
import luks
try:
    luks.Secret.from_terminal("Pass: ", confirm=True)
except luks.SecretRequiredError as error:
    print(error)
"""
    shown, status = _at_terminal(script, answers)
    assert message in shown
    assert "sesam" not in shown
    assert status == 0


def test_the_terminal_echoes_again_afterwards() -> None:
    script = """
import luks, os, termios
fd = os.open("/dev/tty", os.O_RDWR)
before = termios.tcgetattr(fd)
luks.Secret.from_terminal("Pass: ")
print("same" if termios.tcgetattr(fd) == before else "changed")
"""
    shown, _ = _at_terminal(script, [(b"Pass: ", b"open sesame\n")])
    assert shown.split()[-1] == "same"


def test_without_a_terminal_nothing_is_asked() -> None:
    script = """
import luks
try:
    luks.Secret.from_terminal("Pass: ")
except luks.SecretRequiredError as error:
    print(error, error.exit_code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        start_new_session=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("there is no terminal to ask: ")
    assert done.stdout.split()[-1] == "52"
