"""Parts of key files, credentials, commands and the kernel keyring give secrets as they should."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import luks
from luks import Secret
from luks.secret import keyring, secret_sources
from luks.secret.secrets import MAX_KEY_FILE_SIZE
from tests.luks.programs import CHEAP, accepts, cryptsetup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 64  # longer than what is read at once


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(CONTENT)
    return path


def through_a_pipe(content: bytes, *, offset: int = 0, size: int | None = None) -> Secret:
    reader, writer = os.pipe()

    def write() -> None:
        with os.fdopen(writer, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        return Secret.from_fd(reader, offset=offset, size=size)
    finally:
        while os.read(reader, 1 << 16):
            pass
        thread.join()
        os.close(reader)


@pytest.mark.parametrize(
    ("offset", "size"), [(0, None), (1, None), (0, 1), (5000, 7), (4096, 4096), (16383, 1)]
)
def test_s10_a_part_of_a_key_file(key: Path, offset: int, size: int | None) -> None:
    part = CONTENT[offset:] if size is None else CONTENT[offset : offset + size]
    assert bytes(Secret.from_file(key, offset=offset, size=size).view()) == part
    assert bytes(through_a_pipe(CONTENT, offset=offset, size=size).view()) == part


@pytest.mark.parametrize(("offset", "size"), [(16384, None), (99999, None), (16384, 1), (16380, 5)])
def test_s10_a_part_that_is_not_there(key: Path, offset: int, size: int | None) -> None:
    with pytest.raises(luks.SecretRequiredError, match=r"offset|at offset"):
        Secret.from_file(key, offset=offset, size=size)
    with pytest.raises(luks.SecretRequiredError, match=r"offset|at offset"):
        through_a_pipe(CONTENT, offset=offset, size=size)


@pytest.mark.parametrize(("offset", "size"), [(-1, None), (0, 0), (0, -1), (0, (8 << 20) + 1)])
def test_s10_a_part_that_is_no_part(key: Path, offset: int, size: int | None) -> None:
    with pytest.raises(ValueError, match="offset must be"):
        Secret.from_file(key, offset=offset, size=size)


def test_s10_a_part_of_a_device_that_is_larger_than_any_key(tmp_path: Path) -> None:
    path = tmp_path / "device"
    with path.open("wb") as file:
        file.seek(1 << 40)
        file.write(b"key")
    assert bytes(Secret.from_file(path, offset=1 << 40, size=3).view()) == b"key"
    with pytest.raises(luks.SecretRequiredError, match="not a key file"):
        Secret.from_file(path)


@pytest.mark.interop
def test_s10_cryptsetup_takes_the_same_part(key: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(20 << 20))
    part = ("--keyfile-offset", 300, "--keyfile-size", 40)
    cryptsetup("luksFormat", *CHEAP["pbkdf2"], "--key-file", key, *part, image)
    luks.open(image, Secret.from_file(key, offset=300, size=40)).close()
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.open(image, Secret.from_file(key, offset=300, size=39))
    assert accepts(image, key, *part)


def test_s11_a_descriptor_is_read_from_where_it_stands(key: Path) -> None:
    with key.open("rb", buffering=0) as file:
        file.seek(100)
        assert bytes(Secret.from_fd(file.fileno(), offset=20, size=5).view()) == CONTENT[120:125]
        assert file.tell() == 125


def test_s13_a_credential_is_a_file_of_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(luks.SecretRequiredError, match="no credentials were passed"):
        Secret.from_credential("machine-key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(luks.SecretRequiredError, match="credential machine-key: No such file"):
        Secret.from_credential("machine-key")
    (tmp_path / "machine-key").write_bytes(b"\0pw\n")
    assert bytes(Secret.from_credential("machine-key").view()) == b"\0pw\n"


@pytest.mark.parametrize("name", ["", ".", "..", "../key", "/etc/passwd", "a/b", "a\0b"])
def test_s13_a_credential_is_in_no_other_directory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(ValueError, match="not the name of a credential"):
        Secret.from_credential(name)


@pytest.mark.parametrize(
    ("printed", "secret"),
    [("pw", b"pw"), (r"pw\n", b"pw"), (r"pw\n\n", b"pw\n"), (r"\0 \377", b"\0 \xff")],
)
def test_s14_what_a_command_prints_less_one_newline(printed: str, secret: bytes) -> None:
    assert bytes(Secret.from_command(["printf", printed]).view()) == secret


def test_s14_a_command_has_no_shell_and_no_stdin() -> None:
    assert bytes(Secret.from_command(["echo", "$HOME; x"]).view()) == b"$HOME; x"
    with pytest.raises(luks.SecretRequiredError, match="printed nothing"):
        Secret.from_command(["cat"])  # would wait if it had our stdin


def test_s14_nothing_is_run_whose_failure_would_not_be_seen() -> None:
    """Where SIGCHLD is ignored the system does not say how a child ended."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(luks.SecretRequiredError, match="ignores SIGCHLD"):
            Secret.from_command(["sh", "-c", "echo hunter2; exit 3"])
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["false"], "the command false failed with status 1"),
        (["sh", "-c", "echo hunter2; exit 3"], "the command sh failed with status 3"),
        (["true"], "the command true printed nothing"),
        (["echo"], "the command echo printed nothing"),
        (["no-such-program", "hunter2"], "cannot run the command no-such-program: No such file"),
        (["yes", "hunter2"], "what the command yes prints has more than 8388608 bytes"),
    ],
)
def test_s14_a_command_that_gives_no_secret(command: list[str], message: str) -> None:
    with pytest.raises(luks.SecretRequiredError, match=message) as caught:
        Secret.from_command(command)
    assert "hunter2" not in str(caught.value)


def test_s14_there_must_be_a_program() -> None:
    with pytest.raises(ValueError, match="the command is empty"):
        Secret.from_command([])


def test_s3_growing_buffers_are_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    wiped: list[bytearray] = []
    honest = secret_sources.wipe

    def wipe(buffer: bytearray) -> None:
        honest(buffer)
        wiped.append(buffer)

    monkeypatch.setattr(secret_sources, "wipe", wipe)
    assert len(through_a_pipe(CONTENT)) == 16384
    assert [len(buffer) for buffer in wiped] == [4096, 8192, 16384, 32768]
    assert not any(map(any, wiped))
    wiped.clear()
    with pytest.raises(luks.SecretRequiredError):
        through_a_pipe(b"x" * (MAX_KEY_FILE_SIZE + 1))
    assert sum(map(len, wiped)) > MAX_KEY_FILE_SIZE
    assert not any(map(any, wiped))


@pytest.fixture
def add_key() -> Iterator[Callable[[str, bytes], int]]:
    """Adds keys to the keyring of this process's thread, which is private."""
    library = ctypes.CDLL("libkeyutils.so.1", use_errno=True)
    process_keyring = ctypes.c_int32(-2)
    added: list[int] = []

    def add(description: str, content: bytes) -> int:
        serial: int = library.add_key(
            b"user", description.encode(), content, len(content), process_keyring
        )
        if serial < 0:
            reason = os.strerror(ctypes.get_errno())
            pytest.skip(f"this kernel permits no keys, as some containers do not: {reason}")
        added.append(serial)
        return serial

    yield add
    for serial in added:
        library.keyctl_unlink(ctypes.c_int32(serial), process_keyring)


@pytest.mark.parametrize("content", [b"x", b"pw\n", b"\0\xff" * 3000, b"k" * 32767])
def test_s15_a_key_of_the_kernel(add_key: Callable[[str, bytes], int], content: bytes) -> None:
    serial = add_key("blobstore-test:1", content)
    assert bytes(Secret.from_keyring(serial).view()) == content
    assert bytes(Secret.from_keyring("blobstore-test:1").view()) == content
    objects = luks.SecretObjects(
        [luks.SecretObject.parse(f"secret_keyring,id=sec0,serial={serial},format=base64")]
    )
    if content == b"pw\n":
        with pytest.raises(luks.SecretFormatError):
            objects.resolve("sec0")


def test_s24_a_key_as_a_qemu_object(add_key: Callable[[str, bytes], int]) -> None:
    serial = add_key("blobstore-test:2", b"cHc=")
    for form, content in (("raw", b"cHc="), ("base64", b"pw")):
        line = f"secret_keyring,id=sec0,serial={serial},format={form}"
        objects = luks.SecretObjects([luks.SecretObject.parse(line)])
        with objects.resolve("sec0") as secret:
            assert bytes(secret.view()) == content


def test_s15_a_key_that_is_not_there(add_key: Callable[[str, bytes], int]) -> None:
    add_key("blobstore-test:3", b"x")  # so that this is not about a kernel without keys
    with pytest.raises(luks.SecretRequiredError, match="kernel keyring"):
        Secret.from_keyring((1 << 31) - 1)
    with pytest.raises(luks.SecretRequiredError, match="'blobstore-test:none'"):
        Secret.from_keyring("blobstore-test:none")


@pytest.mark.parametrize("serial", [0, -3, 1 << 31])
def test_s24_no_number_of_a_key(serial: int) -> None:
    with pytest.raises(ValueError, match="serial number"):
        Secret.from_keyring(serial)


def test_s15_without_libkeyutils_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "_LIBRARY", "libkeyutils-is-not-here.so")
    keyring._library.cache_clear()
    try:
        with pytest.raises(luks.UnsupportedError) as caught:
            Secret.from_keyring(5)
    finally:
        keyring._library.cache_clear()
    assert "libkeyutils1" in str(caught.value.hint)


def test_the_sources_are_imported_when_they_are_used() -> None:
    code = (
        "import sys, luks\nluks.Secret.from_file('/dev/null')\nluks.SecretObjects()\n"
        "print(sorted({'ctypes', 'subprocess', 'cryptography', 'json'} & set(sys.modules)))"
    )
    assert bytes(Secret.from_command([sys.executable, "-c", code]).view()) == b"[]"
