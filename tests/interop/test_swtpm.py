"""State of real TPMs through a store: swtpm starts from what we export (F4, F8 to F18)."""

from __future__ import annotations

import hashlib
import shutil
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import blobstore
import luks
from blobstore.errors import StateAuthenticationError
from formats.errors import DeviceBusyError, FormatError
from tests.support.cli import succeeds
from tests.support.foreign import ForeignProgramError, run, swtpm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop

SECRET = b"passphrase of the image"
NV_INDEX, KEY_HANDLE = "0x1500016", "0x81000001"
TEXT = b"this text outlives the file it was in"

HEX_16, HEX_32 = bytes(range(16)).hex(), bytes(range(100, 132)).hex()
PASSPHRASE = b"a passphrase of more than 32 bytes, and a newline\n"

#: What swtpm's --key takes, and what is in the file it names as KEY.
KEYS = {
    "hex": ("file=KEY", HEX_16.encode()),
    "hex-0x-newline": ("file=KEY,mode=aes-cbc,format=hex", f"0x{HEX_16.upper()}\n".encode()),
    "hex-256": ("file=KEY,mode=aes-256-cbc,format=hex", HEX_32.encode()),
    "binary": ("file=KEY,format=binary", bytes(range(16))),
    "binary-256": ("file=KEY,mode=aes-256-cbc,format=binary", bytes(range(32))),
    "passphrase": ("pwdfile=KEY", PASSPHRASE),
    "passphrase-256": ("pwdfile=KEY,mode=aes-256-cbc", PASSPHRASE),
    "passphrase-sha512": ("pwdfile=KEY,kdf=sha512", PASSPHRASE),
    "passphrase-sha512-256": ("pwdfile=KEY,mode=aes-256-cbc,kdf=sha512", PASSPHRASE),
}


@dataclass(frozen=True)
class Tpm:
    """Where a TPM's state is, and how it is encrypted."""

    path: Path
    linear: bool = False
    key: str | None = None

    @property
    def form(self) -> str:
        return "swtpm-file" if self.linear else "swtpm-dir"

    @property
    def tpmstate(self) -> str:
        return f"backend-uri=file://{self.path}" if self.linear else f"dir={self.path}"

    @property
    def options(self) -> tuple[str, ...]:
        return ("--key", self.key) if self.key else ()

    @property
    def key_option(self) -> tuple[str, ...]:
        return ("--swtpm-key", self.key) if self.key else ()

    def make(self, *, keep_volatile: bool = False) -> None:
        """Make a TPM with a text, a key and an extended PCR, and end as asked."""
        if not self.linear:
            self.path.mkdir()
        with swtpm(self.tpmstate, *self.options) as tpm:
            attributes = "ownerread|ownerwrite|authread|authwrite"
            define = ("--hierarchy", "o", "--size", len(TEXT), "--attributes", attributes)
            run("tpm2", "nvdefine", NV_INDEX, *define, environment=tpm)
            text, primary = self.path.with_name("text"), self.path.with_name("primary")
            text.write_bytes(TEXT)
            write = ("nvwrite", NV_INDEX, "--hierarchy", "o", "--input", text)
            run("tpm2", *write, environment=tpm)
            create = ("createprimary", "--hierarchy", "o", "--key-algorithm", "ecc")
            run("tpm2", *create, "--key-context", primary, environment=tpm)
            keep = ("evictcontrol", "--hierarchy", "o", "--object-context", primary, KEY_HANDLE)
            run("tpm2", *keep, environment=tpm)
            run("tpm2", "pcrextend", f"16:sha256={'11' * 32}", environment=tpm)
            if keep_volatile:
                run("swtpm_ioctl", "--unix", tpm["SWTPM_CTRL"], "-v")
            else:
                run("tpm2", "shutdown", "--clear", environment=tpm)

    def check(self) -> None:
        """A real swtpm starts from it and has the text and the key."""
        with swtpm(self.tpmstate, *self.options) as tpm:
            assert read_text(tpm) == TEXT
            handles = run("tpm2", "getcap", "handles-persistent", environment=tpm)
            assert KEY_HANDLE.upper()[2:] in handles.decode().upper()


def read_text(tpm: dict[str, str]) -> bytes:
    return run("tpm2", "nvread", NV_INDEX, "--hierarchy", "o", environment=tpm)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    blobstore.create(path, {}, SECRET, kdf=luks.Pbkdf2("sha256", 1000)).close()
    (tmp_path / "key").write_bytes(SECRET)
    return path


@pytest.fixture
def opened(image: Path) -> Iterator[blobstore.Store]:
    with blobstore.open(image, SECRET, direct=True) as store:
        yield store


def tpm_key(directory: Path, name: str) -> str:
    """Write a key file of `KEYS` and return what names it."""
    option, content = KEYS[name]
    path = directory / f"tpm-{name}.key"
    path.write_bytes(content)
    return option.replace("KEY", str(path))


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("linear_out", [False, True], ids=["to-dir", "to-file"])
@pytest.mark.parametrize("linear_in", [False, True], ids=["from-dir", "from-file"])
def test_f4_plain_state_survives_and_is_exact(
    tmp_path: Path, image: Path, linear_in: bool, linear_out: bool
) -> None:
    source = Tpm(tmp_path / "source", linear_in)
    source.make()
    key = ("--key-file", tmp_path / "key")
    succeeds("import", image, source.path, "--from", source.form, *key)
    target = Tpm(tmp_path / "target", linear_out)
    succeeds("export", image, target.path, "--to", target.form, *key)
    if linear_in is linear_out:
        if linear_out:  # F15
            assert target.path.read_bytes() == source.path.read_bytes()
        else:
            assert files(target.path) == files(source.path)
    target.check()
    assert b"no problems" in succeeds("verify", image, *key)


@pytest.mark.parametrize("name", KEYS)
def test_f10_f11_swtpm_and_we_read_what_the_other_encrypted(
    tmp_path: Path, image: Path, name: str
) -> None:
    source = Tpm(tmp_path / "source", key=tpm_key(tmp_path, name))
    source.make()
    key = ("--key-file", tmp_path / "key")
    succeeds("import", image, source.path, "--from", source.form, *source.key_option, *key)
    target = Tpm(tmp_path / "target", key=source.key)
    succeeds("export", image, target.path, "--to", target.form, *target.key_option, *key)
    ours, theirs = files(target.path)["tpm2-00.permall"], files(source.path)["tpm2-00.permall"]
    assert ours[:16] == theirs[:16]
    assert ours[16:48] != theirs[16:48]
    assert TEXT not in ours
    target.check()
    # Exported without a key it is in the clear, under another one it is encrypted by that.
    clear = Tpm(tmp_path / "clear", linear=True)
    succeeds("export", image, clear.path, "--to", clear.form, *key)
    assert TEXT in clear.path.read_bytes()
    clear.check()


def test_f10_another_key_is_refused_by_swtpm_and_by_us(
    tmp_path: Path, opened: blobstore.Store
) -> None:
    source = Tpm(tmp_path / "source", key=tpm_key(tmp_path, "hex"))
    source.make()
    wrong = Tpm(source.path, key=tpm_key(tmp_path, "passphrase"))
    with pytest.raises(ForeignProgramError):
        wrong.check()
    with pytest.raises(StateAuthenticationError, match="does not verify"):
        blobstore.import_state(
            opened, source.path, source.form, key=blobstore.StateKey(PASSPHRASE, "pbkdf2")
        )
    with pytest.raises(StateAuthenticationError, match="128 bits, and the one given has 256"):
        blobstore.import_state(
            opened, source.path, source.form, key=blobstore.StateKey(HEX_32.encode())
        )
    assert len(opened) == 0


@pytest.mark.parametrize("linear", [False, True], ids=["dir", "file"])
@pytest.mark.parametrize("key", [None, "hex-256"])
def test_f7_a_suspended_tpm_goes_on_where_it_was(
    tmp_path: Path, opened: blobstore.Store, linear: bool, key: str | None
) -> None:
    source = Tpm(tmp_path / "source", linear, tpm_key(tmp_path, key) if key else None)
    source.make(keep_volatile=True)
    state_key = blobstore.StateKey(KEYS[key][1]) if key else None
    names = blobstore.import_state(opened, source.path, source.form, key=state_key)
    assert names == ("tpm-permanent-state", "tpm-volatile-state")
    target = Tpm(tmp_path / "target", not linear, source.key)
    blobstore.export_state(opened, target.path, target.form, key=state_key)
    with swtpm(target.tpmstate, *target.options, flags="startup-none") as tpm:
        # No command started this TPM: it runs because its volatile state says so.
        extended = hashlib.sha256(bytes(32) + b"\x11" * 32).hexdigest()
        pcrs = run("tpm2", "pcrread", "sha256:16", environment=tpm).decode().lower()
        assert extended in pcrs
        assert read_text(tpm) == TEXT


def test_f7_f13_a_tpm_12_keeps_its_file_names(tmp_path: Path, opened: blobstore.Store) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with swtpm(f"dir={source}", tpm2=False) as tpm:
        run("swtpm_ioctl", "--unix", tpm["SWTPM_CTRL"], "-v")
    assert set(files(source)) == {"tpm-00.permall", "tpm-00.volatilestate"}
    blobstore.import_state(opened, source, "swtpm-dir")
    assert opened.section("tpm-permanent-state").type == "tpm12-permall"
    target = tmp_path / "target"
    blobstore.export_state(opened, target, "swtpm-dir")
    assert files(target) == files(source)
    with swtpm(f"dir={target}", flags="startup-none", tpm2=False):
        pass  # it refuses state it cannot read


def test_f14_a_linear_file_on_a_larger_volume_is_read(
    tmp_path: Path, opened: blobstore.Store
) -> None:
    source = Tpm(tmp_path / "source", linear=True)
    source.make(keep_volatile=True)
    volume = tmp_path / "volume"
    shutil.copy(source.path, volume)
    with volume.open("r+b") as file:
        file.truncate(4 << 20)
    assert len(blobstore.import_state(opened, volume, "swtpm-file")) == 2


def test_f16_a_directory_in_use_is_neither_read_nor_written(
    tmp_path: Path, opened: blobstore.Store
) -> None:
    source = Tpm(tmp_path / "source")
    source.make()
    blobstore.import_state(opened, source.path, source.form)
    before = files(source.path)
    with swtpm(source.tpmstate):
        with pytest.raises(DeviceBusyError, match="swtpm is using"):
            blobstore.import_state(opened, source.path, source.form, overwrite=True)
        with pytest.raises(DeviceBusyError, match="swtpm is using"):
            blobstore.export_state(opened, source.path, source.form, overwrite=True)
    assert set(files(source.path)) == set(before)
    blobstore.export_state(opened, source.path, source.form, overwrite=True)
    source.check()


def test_f18_an_export_replaces_another_tpm_whole(tmp_path: Path, opened: blobstore.Store) -> None:
    source, other = Tpm(tmp_path / "source"), Tpm(tmp_path / "other")
    source.make()
    other.make(keep_volatile=True)
    blobstore.import_state(opened, source.path, source.form)
    with pytest.raises(blobstore.OutputExistsError):
        blobstore.export_state(opened, other.path, other.form)
    assert len(files(other.path)) == 2
    blobstore.export_state(opened, other.path, other.form, overwrite=True)
    # The volatile state was of the TPM that is gone.
    assert files(other.path) == files(source.path)
    other.check()


def older(state: bytes, *, header: bool, key: bytes | None) -> bytes:
    """Return a state in the clear as swtpm stored it before it had fields (F23)."""
    data = state[16:]
    if key is not None:
        padded = hashlib.sha256(data).digest() + data
        padding = len(key) - len(padded) % len(key)
        encryptor = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).encryptor()
        data = encryptor.update(padded + bytes([padding]) * padding) + encryptor.finalize()
    return struct.pack(">BBHHI", 1, 1, 10, 0, 10 + len(data)) + data if header else data


@pytest.mark.parametrize("header", [False, True], ids=["no header", "version 1"])
@pytest.mark.parametrize("key", [None, "hex", "hex-256"])
def test_f23_older_states_are_imported_as_swtpm_starts_from_them(
    tmp_path: Path, opened: blobstore.Store, key: str | None, header: bool
) -> None:
    source = Tpm(tmp_path / "source")
    source.make(keep_volatile=True)
    option = tpm_key(tmp_path, key) if key else None
    bits = bytes.fromhex(KEYS[key][1].decode()) if key else None
    for name, content in files(source.path).items():
        (source.path / name).write_bytes(older(content, header=header, key=bits))
    judge = Tpm(tmp_path / "judge", key=option)
    shutil.copytree(source.path, judge.path)
    judge.check()
    state_key = blobstore.StateKey(KEYS[key][1]) if key else None
    if key:
        with pytest.raises((StateAuthenticationError, luks.SecretRequiredError, FormatError)):
            blobstore.import_state(opened, source.path, source.form)
        with pytest.raises(StateAuthenticationError):
            other = blobstore.StateKey(HEX_16[::-1].encode())
            blobstore.import_state(opened, source.path, source.form, key=other)
        assert len(opened) == 0
    names = blobstore.import_state(opened, source.path, source.form, key=state_key)
    assert names == ("tpm-permanent-state", "tpm-volatile-state")
    target = Tpm(tmp_path / "target")
    blobstore.export_state(opened, target.path, target.form)
    target.check()


def test_f16_the_directory_of_libvirt_has_that_of_swtpm_below_it(
    tmp_path: Path, opened: blobstore.Store
) -> None:
    machine = tmp_path / "7f2a6c5e-uuid"
    machine.mkdir()
    source = Tpm(machine / "tpm2")
    source.make()
    blobstore.import_state(opened, machine, source.form)
    target = Tpm(tmp_path / "target")
    blobstore.export_state(opened, target.path, target.form)
    assert files(target.path) == files(source.path)
