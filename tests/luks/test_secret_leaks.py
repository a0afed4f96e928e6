"""Whatever goes wrong in the library, no secret is in what it tells: S1."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import logging
import os
import pickle
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import blobstore
import luks
from formats.devices.file import FileDevice
from luks import Secret, SecretObject, SecretObjects
from tests.support.leaks import MARKER, MASTER, forms, leaking_files, leaks, told_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PBKDF2 = luks.Pbkdf2("sha256", 1000)
IV = base64.b64encode(bytes(16)).decode()

# No value with a secret in it is an argument or a local variable of a function
# below that calls the library and fails: it would be found in its frame.


def marked() -> Secret:
    return Secret(MARKER)


def _damaged(path: Path, *offsets: int) -> Path:
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(b"damage")
    return path


def _file(directory: Path, content: str) -> Path:
    """Write a file with the marked secret in it, in one of these forms."""
    made = {
        "plain": lambda: MARKER,
        "no text": lambda: MARKER + b"\xff",
        "with NUL": lambda: MARKER + b"\0",
        "no base64": lambda: MARKER + b"?",
        "base64 without padding": lambda: base64.b64encode(MARKER + b"x").rstrip(b"="),
        "base64": lambda: base64.b64encode(MARKER),
        "16 bytes": lambda: MARKER[:16],
        "too long": lambda: MARKER * ((8 << 20) // len(MARKER) + 1),
        "encrypted without padding": lambda: _encrypted(MARKER[:32]),
        "master": lambda: base64.b64encode(MASTER),
        "short master": lambda: base64.b64encode(MASTER[:-1]),
    }
    path = directory / content.replace(" ", "-")
    path.write_bytes(made[content]())
    return path


def _encrypted(blocks: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(MASTER), modes.CBC(bytes(16))).encryptor()
    return encryptor.update(blocks) + encryptor.finalize()


def _resolve(directory: Path, content: str, more: str = "", *others: str) -> None:
    lines = [f"secret,id=sec0,file={_file(directory, content)}{more}", *others]
    SecretObjects(map(SecretObject.parse, lines)).resolve("sec0")


def _decrypt(directory: Path, content: str, master: str, iv: str = IV) -> None:
    key = _file(directory, master)
    _resolve(
        directory,
        content,
        f",keyid=m,iv={iv}",
        f"secret,id=m,file={key},format={'raw' if master == 'plain' else 'base64'}",
    )


FAILURES: dict[str, Callable[[Path], object]] = {
    "wrong passphrase": lambda d: luks.open(d / "image", marked()),
    "wrong passphrase of LUKS1": lambda d: luks.open(d / "luks1", marked()),
    "both headers damaged": lambda d: luks.open(_damaged(d / "image", 5000, 21384), marked()),
    "both container headers damaged": lambda d: blobstore.open(
        _damaged(d / "clear", 40, 4136), marked(), allow_unprotected=True
    ),
    "no image": lambda d: luks.open(d / "none", marked()),
    "keyslot that is not there": lambda d: luks.open(d / "image", marked(), keyslot=7),
    "wrong policy": lambda d: luks.open(d / "image", marked(), policy=luks.Policy(uuid="x")),
    "format over an image": lambda d: luks.format(d / "image", marked(), size=4096, kdf=PBKDF2),
    "format without room": lambda d: luks.format(d / "x", marked(), keyslots_size=4096, size=4096),
    "add with a wrong one": lambda d: luks.add_keyslot(d / "image", marked(), marked(), kdf=PBKDF2),
    "change a wrong one": lambda d: luks.change_keyslot(
        d / "image", marked(), marked(), kdf=PBKDF2
    ),
    "remove a wrong one": lambda d: luks.remove_keyslot(d / "image", secret=marked()),
    "wrong volume key": lambda d: luks.verify_volume_key(
        luks.load_header(d / "image"), marked().view()
    ),
    "store with a wrong passphrase": lambda d: blobstore.open(d / "image", marked()),
    "store over an image": lambda d: blobstore.create(d / "image", {}, marked(), kdf=PBKDF2),
    "store in the clear": lambda d: blobstore.create(d / "x", {}, marked(), encrypted=False),
    "key file too long": lambda d: Secret.from_file(_file(d, "too long")),
    "key file too short": lambda d: Secret.from_file(_file(d, "plain"), size=500),
    "command that fails": lambda d: Secret.from_command(
        ["sh", "-c", f"cat {_file(d, 'plain')}; exit 1"]
    ),
    "command that says too much": lambda d: Secret.from_command(["cat", f"{_file(d, 'too long')}"]),
    "raw that is not text": lambda d: _resolve(d, "no text"),
    "raw with NUL": lambda d: _resolve(d, "with NUL"),
    "no base64": lambda d: _resolve(d, "no base64", ",format=base64"),
    "base64 without padding": lambda d: _resolve(d, "base64 without padding", ",format=base64"),
    "not encrypted": lambda d: _decrypt(d, "16 bytes", "master"),
    "not padded": lambda d: _decrypt(d, "encrypted without padding", "master"),
    "no whole blocks": lambda d: _decrypt(d, "plain", "master"),
    "short iv": lambda d: _decrypt(d, "16 bytes", "master", "AAAA"),
    "iv that is none": lambda d: _decrypt(d, "16 bytes", "master", "?"),
    "short master key": lambda d: _decrypt(d, "16 bytes", "short master"),
    "passphrase as master key": lambda d: _decrypt(d, "16 bytes", "plain"),
    "copied": lambda _: copy.deepcopy({"key": marked()}),
    "pickled": lambda _: pickle.dumps([marked()]),
    "pickled definition": lambda _: pickle.dumps(SecretObject(id="s", data=marked())),
    "as JSON": lambda _: json.dumps({"key": marked()}),
    "as bytes": lambda _: bytes(marked()),  # type: ignore[call-overload]
    "joined": lambda _: b"".join([marked()]),  # type: ignore[list-item]
    "wiped": lambda _: wiped().view(),
    "contradicting definition": lambda _: SecretObject(id="s", data=marked(), file="x"),
    "definition of nothing": lambda _: SecretObject(id="0", data=marked()),
}


def wiped() -> Secret:
    with marked() as secret:
        return secret


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    blobstore.create(tmp_path / "image", {"a": 100}, b"right", kdf=PBKDF2, free=0).close()
    blobstore.create(tmp_path / "clear", {"a": 100}, encrypted=False, free=0).close()
    luks.format(tmp_path / "luks1", b"right", version=1, size=4096, kdf=PBKDF2).close()
    return tmp_path


@pytest.mark.parametrize("failure", FAILURES)
def test_s1_no_failure_tells_a_secret(
    failure: str, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = ""
    try:
        FAILURES[failure](directory)
    except Exception as error:  # noqa: BLE001  whatever it is, it must not tell
        told = told_by(error)
    assert told, "it did not fail"
    assert "test_s1_no_failure" in told  # the local variables are there
    assert not leaks(told)
    assert not leaks(caplog.text)
    for written in ("image", "luks1"):
        assert not leaks((directory / written).read_bytes())


DEFINITIONS: dict[str, Callable[[], str]] = {
    "a comma not doubled": lambda: f"secret,id=s,data=x,{MARKER.decode()}",
    "a comma not doubled, with =": lambda: f"secret,id=s,data=x,{MARKER.decode()}=",
    "twice": lambda: f"secret,id=s,data={MARKER.decode()},data={MARKER.decode()}",
    "no object": lambda: f"{MARKER.decode()},id=s",
    "with a surrogate": lambda: f"secret,id=s,data={MARKER.decode()}\ud800",
    "bad JSON": lambda: f'{{"qom-type": "secret", "data": "{MARKER.decode()}"',
    "JSON of another shape": lambda: f'{{"data": ["{MARKER.decode()}"]}}',
}


def _parse(name: str) -> None:
    """Parse a definition that no frame above that of the parser holds."""
    SecretObject.parse(DEFINITIONS[name]())


@pytest.mark.parametrize("name", DEFINITIONS)
def test_s1_no_faulty_definition_is_told(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(luks.SecretObjectError) as caught:
        _parse(name)
    assert not leaks(told_by(caught.value))
    assert not leaks(caplog.text)


def test_s1_nothing_that_holds_a_secret_shows_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with luks.format(tmp_path / "image", marked(), size=8192, kdf=PBKDF2) as volume:
        volume.write(0, b"x")
    with FileDevice(tmp_path / "image") as device:
        key = luks.unlock(device, luks.load_header(device), marked())
    defined = SecretObject.parse(f"secret,id=s,data={MARKER.decode()}")
    with luks.open(tmp_path / "image", marked(), read_only=False) as volume:
        luks.add_keyslot(tmp_path / "image", marked(), marked(), kdf=PBKDF2)
        with SecretObjects([defined]).resolve("s") as secret:
            header = luks.load_header(tmp_path / "image")
            shown = [secret, defined, volume, header, key]
            logging.getLogger("luks").debug("%s %r %s", *shown[:3])
            assert not leaks(" ".join(f"{one} {one!r} {one!s:}" for one in shown))
    assert "<Secret>" in caplog.text
    assert not leaks(caplog.text)
    assert not leaking_files(tmp_path)


def test_a_leak_would_be_found(tmp_path: Path) -> None:
    for number, form in enumerate(forms(MARKER).values()):
        assert leaks(b"..." + form + b"...")
        (tmp_path / f"{number}").write_bytes(form)
    assert len({line.partition(":")[0] for line in leaking_files(tmp_path)}) == len(forms(MARKER))

    def fails(password: bytes) -> None:
        raise ValueError(len(password))

    with pytest.raises(ValueError) as caught:
        fails(MARKER)
    assert leaks(told_by(caught.value))
    hidden = ValueError("the cause")
    with contextlib.suppress(UnicodeDecodeError):
        str(MARKER + b"\xff", "utf-8")
    try:
        str(MARKER + b"\xff", "utf-8")
    except UnicodeDecodeError as error:
        hidden.__context__ = error
        hidden.__suppress_context__ = True
    assert leaks(told_by(hidden))
    assert leaks(os.fsdecode(MARKER))
