"""Where commands take passphrases from: every way, for every image of a command."""

from __future__ import annotations

import base64
import importlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import blobstore as library
import luks
from blobstore.cli.main import VERBS, _module
from tests.support.cli import QUICK, blobstore, fails, succeeds, with_signals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "p\u00e4ss word".encode()
OPTIONS = ("file", "fd", "secret", "credential", "command")


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def make_image(path: Path, secret: bytes = SECRET) -> Path:
    kdf = luks.Pbkdf2("sha256", 1000)
    with library.create(path, {"a": 100}, secret, kdf=kdf, free=0) as store:
        store.put("a", b"A blob")
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(SECRET)
    return make_image(tmp_path / "image")


@pytest.fixture
def descriptor(image: Path) -> Iterator[int]:
    fd = os.open(image.parent / "key", os.O_RDONLY)
    os.set_inheritable(fd, True)
    yield fd
    os.close(fd)


def opens(image: Path, *options: object, stdin: bytes = b"", fd: int | None = None) -> bool:
    done = blobstore("get", image, "a", *options, stdin=stdin, pass_fds=() if fd is None else (fd,))
    assert done.returncode in {0, 51}, done
    assert done.stdout == (b"" if done.returncode else b"A blob")
    return not done.returncode


def all_commands(command: click.Command) -> list[click.Command]:
    """A verb, or the verbs below it."""
    if isinstance(command, click.Group):
        return [one for below in command.commands.values() for one in all_commands(below)]
    return [command]


@pytest.mark.parametrize("verb", VERBS)
def test_s30_every_verb_has_every_option(verb: str) -> None:
    module = importlib.import_module(f"blobstore.cli.commands.{_module(verb)}")
    for command in all_commands(module.command):
        names = {name for parameter in command.params for name in parameter.opts}
        # Any option of a key file, or what goes with an image's store.
        before = {name.removesuffix("key-file") for name in names if name.endswith("key-file")}
        before -= {"--volume-", "--unbound-"}  # are keys, not passphrases
        if verb == "reencrypt":
            before.remove("--other-")  # any number of them, so only files
        if names & {"--allow-unprotected", "--no-encryption"}:
            before.add("--")
        for whose in before:
            wanted = {f"{whose}key-{option}" for option in OPTIONS}
            wanted |= {f"{whose}keyfile-offset", f"{whose}keyfile-size", "--object"}
            assert wanted <= names, command.name


def test_s30_key_files_and_descriptors_and_parts_of_them(image: Path, descriptor: int) -> None:
    key = image.parent / "key"
    long = image.parent / "long"
    long.write_bytes(b"12345" + SECRET + b"67890")
    part = ("--keyfile-offset", 5, "--keyfile-size", len(SECRET))
    assert opens(image, "--key-file", key)
    assert opens(image, "--key-file", long, *part)
    assert not opens(image, "--key-file", long)
    assert opens(image, "--key-fd", descriptor, fd=descriptor)
    assert opens(image, "--key-fd", 0, *part, stdin=long.read_bytes())
    assert fails("get", image, "a", "--key-file", key, "--keyfile-offset", 99) == 52


def test_s31_stdin_is_a_key_or_data(image: Path) -> None:
    assert opens(image, "--key-file", "-", stdin=SECRET)
    assert not opens(image, "--key-file", "-", stdin=SECRET + b"\n")
    for option in (("--key-file", "-"), ("--key-fd", "0")):
        assert fails("put", image, "a", "-", *option, stdin=SECRET) == 2
        assert fails("import", image, "-", "--from", "raw", "--name", "a", *option) == 2
    assert opens(image, "--key-file", image.parent / "key")


def test_a_newline_counts_but_for_a_command(image: Path) -> None:
    line = image.parent / "line"
    line.write_bytes(SECRET + b"\n")
    escaped = str(line).replace(",", ",,")
    assert not opens(image, "--key-file", line)
    assert not opens(image, "--object", f"secret,id=s,file={escaped}", "--key-secret", "s")
    assert opens(image, "--key-command", f"cat '{line}'")
    line.write_bytes(SECRET + b"\n\n")
    assert not opens(image, "--key-command", f"cat '{line}'")


def test_s30_qemus_objects(image: Path, descriptor: int) -> None:
    key = image.parent / "key"
    encoded = image.parent / "key.b64"
    encoded.write_text(base64_of(SECRET) + "\n")
    named = ("--key-secret", "sec0")
    assert opens(image, "--object", f"secret,id=sec0,file={encoded},format=base64", *named)
    assert opens(image, "--object", f"secret,id=sec0,file={key}", *named)
    fdset = f"secret,id=sec0,file=/dev/fdset/{descriptor}"
    assert opens(image, "--object", fdset, *named, fd=descriptor)
    master = bytes(range(32))
    encryptor = Cipher(algorithms.AES(master), modes.CBC(bytes(16))).encryptor()
    count = 16 - len(SECRET) % 16
    sealed = encryptor.update(SECRET + bytes([count]) * count) + encryptor.finalize()
    (image.parent / "master").write_text(base64_of(master))
    defined = f"secret,id=sec0,keyid=m,iv={base64_of(bytes(16))},data={base64_of(sealed)}"
    objects = (f"secret,id=m,file={image.parent}/master,format=base64", f"{defined},format=base64")
    assert opens(image, *(word for one in objects for word in ("--object", one)), *named)


def test_s26_data_in_the_clear_works_and_warns(image: Path) -> None:
    inline = ("--object", f"secret,id=sec0,data={SECRET.decode()}", "--key-secret", "sec0")
    done = blobstore("get", image, "a", *inline)
    assert (done.returncode, done.stdout) == (0, b"A blob")
    assert b"secret sec0 is in the clear" in done.stderr
    assert SECRET not in done.stderr
    quiet = blobstore("-q", "get", image, "a", *inline)
    assert (quiet.returncode, quiet.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--key-file", "key", "--key-fd", "3"), 2, "exclude each other"),
        (("--key-file", "key", "--key-secret", "s"), 2, "exclude each other"),
        (("--key-credential", "key", "--key-command", "true"), 2, "exclude each other"),
        (("--key-command", "cat key", "--keyfile-size", "5"), 2, "go with --key-file"),
        (("--keyfile-offset", "5"), 2, "go with --key-file"),
        (("--key-file", "key", "--keyfile-size", "0"), 2, "keyfile-size"),
        (("--key-fd", "-1"), 2, "key-fd"),
        (("--key-command", "cat 'key"), 2, "No closing quotation"),
        (("--key-command", ""), 2, "the command is empty"),
        (("--key-credential", "../key"), 2, "not the name of a credential"),
        (("--key-credential", "key"), 52, "CREDENTIALS_DIRECTORY is not set"),
        (("--key-command", "false"), 52, "failed with status 1"),
        (("--key-fd", "99"), 52, "Bad file descriptor"),
        (("--key-secret", "s"), 55, "no secret has the id 's'"),
        (("--object", "secret,id=s", "--key-secret", "s"), 55, "data, file and serial"),
        (("--object", "secret,id=s,data=x,hunter2", "--key-secret", "s"), 55, "in part 4"),
        (("--object", "secret,id=s,data=?,format=base64", "--key-secret", "s"), 56, "base64"),
    ],
)
def test_s30_what_does_not_fit_together(
    image: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    done = blobstore("get", image, "a", *options, cwd=image.parent)
    assert (done.returncode, done.stdout) == (code, b""), done
    assert said in done.stderr.decode()
    assert b"hunter2" not in done.stderr


@pytest.mark.parametrize(("tail", "code"), [("", 0), ("; exit 3", 52)])
def test_s14_a_command_that_fails_is_seen_where_sigchld_was_ignored(
    image: Path, tail: str, code: int
) -> None:
    """What it printed before it failed would else become a new passphrase."""
    said = f"sh -c 'printf half{tail}'"
    words = ["key", "add", image, "--key-file", image.parent / "key", "--new-key-command", said]
    started = [*with_signals(ignored=["CHLD"]), sys.executable, "-m", "blobstore"]
    done = subprocess.run([*started, *map(str, (*words, *QUICK))], capture_output=True, check=False)
    assert done.returncode == code, done
    assert (b"failed with status 3" in done.stderr) == bool(code)
    assert opens(image, "--key-command", "printf half") is not bool(code)


def test_s30_a_second_image_has_its_own_key(image: Path, tmp_path: Path) -> None:
    other = b"another"
    (tmp_path / "other.b64").write_text(base64_of(other))
    objects = (
        *("--object", f"secret,id=old,file={tmp_path}/key"),
        *("--object", f"secret,id=new,file={tmp_path}/other.b64,format=base64"),
    )
    keys = ("--key-secret", "old", "--new-key-secret", "new")
    succeeds("clone", image, tmp_path / "copy", *objects, *keys, *QUICK)
    with library.open(tmp_path / "copy", other, read_only=True) as store:
        assert store.get("a") == b"A blob"
    keys = ("--key-file", str(tmp_path / "key"), "--other-key-secret", "new")
    assert succeeds("diff", image, tmp_path / "copy", *objects, *keys) == b""
    done = ("--key-secret", "old", "--other-key-command", f"base64 -d {tmp_path}/other.b64")
    assert succeeds("diff", image, tmp_path / "copy", *objects, *done) == b""


@pytest.mark.parametrize(
    "option", [("--key-fd", "0"), ("--key-file", "-"), ("--key-file", "/dev/stdin")]
)
def test_s30_a_borrowed_key_that_can_be_read_once_serves_twice(
    image: Path, tmp_path: Path, option: tuple[str, str]
) -> None:
    make_image(tmp_path / "copy")
    done = blobstore("diff", image, tmp_path / "copy", *option, stdin=SECRET)
    assert (done.returncode, done.stderr) == (0, b""), done


def test_s30_a_new_image_takes_them_as_well(tmp_path: Path) -> None:
    path = tmp_path / "image"
    named = ("--key-command", "printf secret")
    succeeds("create", path, "--section", "a=10", *named, *QUICK)
    library.open(path, b"secret", read_only=True).close()
    assert fails("create", tmp_path / "clear", "--no-encryption", *named) == 2
    assert not (tmp_path / "clear").exists()
