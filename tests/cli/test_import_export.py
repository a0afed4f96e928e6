"""`blobstore import` and `blobstore export`: what they write, refuse and exit with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import blobstore as library
import luks
from blobstore.foreign.encryption import StateKey
from blobstore.image.small_disks import qcow2_with
from formats.state.swtpm import PlainState, Slot, encode_state
from formats.state.swtpm_linear import encode_linear
from tests.foreign.samples import BOOT, flash, uefi_json
from tests.support.cli import blobstore, succeeds

if TYPE_CHECKING:
    from pathlib import Path

SECRET = b"right"
STATE = PlainState(bytes.fromhex("0003ab364723") + b"permanent" * 20)
PERMANENT = encode_state(STATE)
HEX_KEY = bytes(range(16)).hex().encode()
ENCRYPTED = encode_state(StateKey(HEX_KEY).encrypt(STATE))
LINEAR = encode_linear({Slot.PERMANENT: PERMANENT})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    library.create(path, {"blank": 100}, SECRET, kdf=luks.Pbkdf2("sha256", 1000)).close()
    (tmp_path / "key").write_bytes(SECRET)
    return path


def keyed(image: Path) -> tuple[str, Path]:
    return ("--key-file", image.parent / "key")


#: What to import, how, and the exit code.
# Its refcounts are impossible.
DAMAGED_QCOW2 = b"\xff\xff\xff\xff".join((qcow2_with(flash())[:96], qcow2_with(flash())[100:]))
REFUSED: dict[str, tuple[bytes, tuple[str, ...], int]] = {
    "empty linear file": (b"", ("swtpm-file",), 31),
    "foreign linear file": (b"GIF89a" * 99, ("swtpm-file",), 32),
    "truncated linear file": (LINEAR[:300], ("swtpm-file",), 33),
    "state of another format": (
        encode_linear({Slot.PERMANENT: b"GIF89a" * 9}),
        ("swtpm-file",),
        30,
    ),
    "state without its key": (encode_linear({Slot.PERMANENT: ENCRYPTED}), ("swtpm-file",), 52),
    "state with another key": (
        encode_linear({Slot.PERMANENT: ENCRYPTED}),
        ("swtpm-file", "--swtpm-key", "file=WRONG"),
        76,
    ),
    "state with a bad key file": (
        encode_linear({Slot.PERMANENT: ENCRYPTED}),
        ("swtpm-file", "--swtpm-key", "file=STATE"),
        52,
    ),
    "a key for state in the clear": (LINEAR, ("swtpm-file", "--swtpm-key", "file=WRONG"), 53),
    "empty flash": (bytes(8192), ("ovmf-vars",), 31),
    "foreign flash": (b"GIF89a" * 999, ("ovmf-vars",), 32),
    "truncated flash": (flash()[:-1], ("ovmf-vars",), 33),
    "damaged flash": (flash(checksum=1), ("ovmf-vars",), 30),
    "flash in a damaged qcow2 image": (DAMAGED_QCOW2, ("ovmf-vars",), 30),
    "flash in a cut qcow2 image": (b"QFI\xfb\0\0\0\3", ("ovmf-vars",), 33),
    "flash in qcow2 of a later version": (b"QFI\xfb\0\0\0\4" + bytes(9999), ("ovmf-vars",), 40),
    "empty JSON": (b"", ("uefi-vars",), 31),
    "foreign JSON": (b"[]", ("uefi-vars",), 32),
    "truncated JSON": (uefi_json(BOOT)[:-5], ("uefi-vars",), 33),
    "damaged JSON": (uefi_json(BOOT, BOOT), ("uefi-vars",), 30),
    "no name": (b"x", ("raw",), 2),
    "bad name": (b"x", ("raw", "--name", "a\n"), 2),
    "name too long": (LINEAR, ("swtpm-file", "--name", "n" * 190), 2),
    "no such format": (b"x", ("vmgs",), 2),
    "a key for raw": (b"x", ("raw", "--name", "a", "--swtpm-key", "file=WRONG"), 2),
    "no flash in a qcow2 image": (qcow2_with(b"GIF89a  " * 512), ("ovmf-vars",), 32),
    "blank flash in a qcow2 image": (qcow2_with(bytes(8192)), ("ovmf-vars",), 31),
    "a size for a flash": (flash(), ("ovmf-vars", "--max-size", "9000"), 2),
}


@pytest.mark.parametrize("case", REFUSED)
def test_f2_each_kind_of_bad_source_has_its_code_and_changes_nothing(
    image: Path, case: str
) -> None:
    content, (form, *options), code = REFUSED[case]
    source, wrong = image.parent / "source", image.parent / "wrong"
    source.write_bytes(content)
    wrong.write_bytes(b"ff" * 16)
    options = [o.replace("WRONG", str(wrong)).replace("STATE", str(source)) for o in options]
    before = image.read_bytes()
    done = blobstore("import", image, source, "--from", form, *options, *keyed(image))
    assert (done.returncode, done.stdout) == (code, b""), done
    assert b"Traceback" not in done.stderr
    assert done.stderr
    assert image.read_bytes() == before


def test_f3_f5_nothing_is_overwritten_without_force(tmp_path: Path, image: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LINEAR)
    target.write_bytes(b"mine")
    into = ("import", image, source, "--from", "swtpm-file", *keyed(image))
    out = ("export", image, target, "--to", "swtpm-file", *keyed(image))
    missing = blobstore(*out)
    assert (missing.returncode, target.read_bytes()) == (61, b"mine")
    succeeds(*into)
    assert blobstore(*into).returncode == 73
    succeeds(*into, "--force")
    refused = blobstore(*out)
    assert (refused.returncode, target.read_bytes()) == (72, b"mine")
    succeeds(*out, "--force")
    assert target.read_bytes() == LINEAR
    assert {path.name for path in tmp_path.iterdir()} == {"image", "key", "source", "target"}


def test_a_registered_section_without_a_blob_is_not_exported(tmp_path: Path, image: Path) -> None:
    target = tmp_path / "target"
    done = blobstore("export", image, target, "--to", "raw", "--name", "blank", *keyed(image))
    assert (done.returncode, target.exists()) == (62, False)


def test_f6_a_section_goes_through_stdin_and_stdout(image: Path) -> None:
    raw = ("--name", "any", *keyed(image))
    done = blobstore("import", image, "-", "--from", "raw", *raw, stdin=b"any \0 bytes")
    assert (done.returncode, done.stderr) == (0, b"")
    assert succeeds("export", image, "-", "--to", "raw", *raw) == b"any \0 bytes"
    for verb, option in (("import", "--from"), ("export", "--to")):
        done = blobstore(verb, image, "-", option, "swtpm-dir", *keyed(image))
        assert done.returncode == 2


def test_f12_the_key_comes_by_file_or_descriptor_and_encrypts_again(
    tmp_path: Path, image: Path
) -> None:
    source, target, key = tmp_path / "source", tmp_path / "target", tmp_path / "tpm.key"
    source.write_bytes(encode_linear({Slot.PERMANENT: ENCRYPTED}))
    key.write_bytes(HEX_KEY)
    reading, writing = os.pipe()
    os.write(writing, HEX_KEY)
    os.close(writing)
    done = blobstore(
        *("import", image, source, "--from", "swtpm-file", *keyed(image)),
        *("--swtpm-key", f"fd={reading},mode=aes-cbc,format=hex"),
        pass_fds=[reading],
    )
    os.close(reading)
    assert (done.returncode, done.stderr) == (0, b"")
    assert succeeds("get", image, "tpm-permanent-state", *keyed(image)) == PERMANENT
    spec = ("--swtpm-key", f"pwdfile={key},mode=aes-256-cbc,kdf=sha512")
    succeeds("export", image, target, "--to", "swtpm-file", *spec, *keyed(image))
    assert b"permanent" not in target.read_bytes()
    succeeds("import", image, target, "--from", "swtpm-file", "--force", *spec, *keyed(image))
    assert succeeds("get", image, "tpm-permanent-state", *keyed(image)) == PERMANENT


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "file",
        "file=",
        "mode=aes-cbc",
        "file=a,pwdfile=b",
        "file=a,file=b",
        "fd=x",
        "file=a,mode=aes",
        "file=a,format=text",
        "file=a,kdf=sha512",
        "pwdfile=a,format=hex",
        "pwdfile=a,kdf=scrypt",
        "file=a,remove=true",
    ],
)
def test_f11_what_names_no_key_is_wrong_usage(tmp_path: Path, image: Path, spec: str) -> None:
    done = blobstore(
        *("import", image, tmp_path, "--from", "swtpm-dir", "--swtpm-key", spec), *keyed(image)
    )
    assert done.returncode == 2, done
    assert b"--swtpm-key" in done.stderr


def test_f12_a_store_in_the_clear_takes_decrypted_state_on_request_only(tmp_path: Path) -> None:
    image, source, key = tmp_path / "image", tmp_path / "source", tmp_path / "tpm.key"
    library.create(image, {}, encrypted=False).close()
    source.write_bytes(encode_linear({Slot.PERMANENT: ENCRYPTED}))
    key.write_bytes(HEX_KEY)
    into = ("import", image, source, "--from", "swtpm-file", "--swtpm-key", f"file={key}")
    assert blobstore(*into).returncode == 53
    succeeds(*into, "--allow-unprotected")
    assert succeeds("get", image, "tpm-permanent-state") == PERMANENT
