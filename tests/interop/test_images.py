"""Images of this project opened by cryptsetup, QEMU, OpenSSL and dissect, and back."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dissect.fve import luks as dissect_luks

import blobstore
import luks
from tests.support import asn1
from tests.support.foreign import fw_printenv, lspci_vpd, run, swtpm_nv_read
from tests.support.stores import contents

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.interop

SECRET, SECOND = b"first passphrase", b"second passphrase"
MACHINE = Path(__file__).resolve().parents[2] / "examples" / "machine"

PBKDF2 = luks.Pbkdf2("sha256", 1000)
ARGON2ID, ARGON2I = luks.Argon2("argon2id", 4, 32, 1), luks.Argon2("argon2i", 4, 64, 2)

#: LUKS version, sector size, key size, key derivation.
KINDS: list[tuple[int, int | None, int, luks.KdfCost]] = [
    (1, None, 64, PBKDF2),
    (1, None, 32, PBKDF2),
    (2, 4096, 64, ARGON2ID),
    (2, 512, 64, ARGON2I),
    (2, 4096, 32, PBKDF2),
    (2, 512, 32, PBKDF2),
]
IDS = [f"luks{v}-{s}-{8 * k}-{type(kdf).__name__.lower()}" for v, s, k, kdf in KINDS]


class Made:
    """An image made by this project with the example machine in it."""

    def __init__(self, directory: Path, kind: tuple[int, int | None, int, luks.KdfCost]) -> None:
        self.directory = directory
        self.version, self.sector_size, self.key_size, self.kdf = kind
        self.path = directory / "machine.img"
        self.header: Path | None = None
        self.key = self.file("key", SECRET)

    def file(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        return path

    def make(self, *, detached: bool) -> None:
        self.header = self.directory / "header" if detached else None
        manifest = blobstore.load_manifest(MACHINE / "manifest.toml")
        with blobstore.create(
            self.path,
            manifest.sections,
            SECRET,
            header=self.header,
            luks_version=self.version,
            sector_size=self.sector_size,
            key_size=self.key_size,
            kdf=self.kdf,
            free=64 << 10,  # dissect takes a second for every few MiB
        ) as store:
            store.put("tpm-volatile-state", b"volatile" * 100)
            self.contents = contents(store)

    @property
    def luks_file(self) -> Path:
        """The file that holds the LUKS header."""
        return self.header or self.path

    def check(self, secret: bytes = SECRET) -> None:
        """Our code still opens it and finds what was put in."""
        with blobstore.open(self.path, secret, header=self.header) as store:
            assert contents(store) == self.contents
            assert store.verify().ok

    def payload(self) -> bytes:
        with luks.open(self.path, SECRET, header=self.header) as volume:
            return volume.read(0, volume.size)


@pytest.fixture(params=KINDS, ids=IDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return Made(tmp_path, request.param)


@pytest.fixture(params=["attached", "detached"])
def image(request: pytest.FixtureRequest, made: Made) -> Made:
    made.make(detached=request.param == "detached")
    return made


def test_cryptsetup_dumps_tests_and_changes_every_image(image: Made) -> None:
    target = image.luks_file
    run("cryptsetup", "isLuks", "--type", f"luks{image.version}", target)
    dump = run("cryptsetup", "luksDump", target).decode()
    assert f"{image.key_size * 8}" in dump
    key = ("--key-file", image.key)
    run("cryptsetup", "open", "--test-passphrase", *key, target)
    second = image.file("second", SECOND)
    run("cryptsetup", "luksAddKey", "--pbkdf", "pbkdf2", "--iter-time", "1", *key, target, second)
    run("cryptsetup", "open", "--test-passphrase", "--key-file", second, target)
    image.check(SECRET)
    image.check(SECOND)
    backup = image.directory / "backup"
    run("cryptsetup", "luksHeaderBackup", target, "--header-backup-file", backup)
    # The header alone opens the payload, from its backup as well.
    with luks.open(image.path, SECOND, header=backup) as volume:
        assert volume.read(0, volume.size) == image.payload()
    run("cryptsetup", "luksKillSlot", "--batch-mode", *key, target, "1")
    image.check(SECRET)
    with pytest.raises(luks.NoKeyslotMatchError):
        image.check(SECOND)


def test_the_payload_is_der(image: Made) -> None:
    payload = image.payload()
    with blobstore.open(image.path, SECRET, header=image.header, read_only=True) as store:
        container = payload[: store.info().size]
    assert "appl [ 19 ]" in asn1.openssl(image.file("container", container))
    asn1.strict(container)


def raw_payload(image: Made) -> Iterator[tuple[str, bytes]]:
    """Yield the payload as programs that have never heard of us decrypt it."""
    if image.version == 1:
        yield "qemu-img", _by_qemu(image)
    else:
        yield "cryptsetup", _by_cryptsetup(image)
    if image.header is None:
        yield "dissect", _by_dissect(image)


def _by_qemu(image: Made) -> bytes:
    raw = image.directory / "raw"
    run("qemu-img", "convert", *_qemu_source(image), "-O", "raw", raw)
    return raw.read_bytes()


def _qemu_source(image: Made) -> list[object]:
    options = f"driver=luks,key-secret=s0,file.driver=file,file.filename={image.path}"
    if image.header:
        options += f",header.driver=file,header.filename={image.header}"
    return ["--object", f"secret,id=s0,file={image.key}", "--image-opts", options]


def _by_cryptsetup(image: Made) -> bytes:
    copy, header = image.directory / "copy", image.directory / "copy.header"
    shutil.copy(image.path, copy)
    if image.header:
        shutil.copy(image.header, header)
    run(
        "cryptsetup",
        *("reencrypt", "--decrypt", "--force-offline-reencrypt", "--batch-mode"),
        *("--key-file", image.key, "--header", header, copy),
    )
    return copy.read_bytes()


def _by_dissect(image: Made) -> bytes:
    with image.path.open("rb") as file:
        volume = dissect_luks.LUKS(file)
        volume.unlock_with_passphrase(SECRET.decode())
        payload: bytes = volume.open().read(len(image.payload()))
    return payload


def test_others_decrypt_what_we_wrote(image: Made) -> None:
    payload = image.payload()
    found = dict(raw_payload(image))
    assert found
    for program, raw in found.items():
        assert raw[: len(payload)] == payload, program


def test_a_container_that_qemu_encrypted_opens_here(tmp_path: Path) -> None:
    """The payload of an image of this project, written into an image of QEMU's, is a store."""
    ours = Made(tmp_path, KINDS[0])
    ours.make(detached=False)
    raw = ours.file("raw", ours.payload())
    theirs = tmp_path / "theirs"
    secret = ["--object", f"secret,id=s0,file={ours.key}"]
    _create_by_qemu(theirs, secret, raw.stat().st_size)
    target = f"driver=luks,key-secret=s0,file.driver=file,file.filename={theirs}"
    run("qemu-img", "convert", *secret, "-f", "raw", "-n", "--target-image-opts", raw, target)
    with blobstore.open(theirs, SECRET) as store:
        assert contents(store) == ours.contents
        store.put("tpm-volatile-state", b"written by us")
    source = f"driver=luks,key-secret=s0,file.driver=file,file.filename={theirs}"
    run("qemu-img", "convert", *secret, "--image-opts", source, "-O", "raw", tmp_path / "back")
    with blobstore.open(tmp_path / "back", allow_unprotected=True) as store:
        assert store.get("tpm-volatile-state") == b"written by us"


def _create_by_qemu(path: Path, secret: list[str], size: int) -> None:
    options = "key-secret=s0,iter-time=10"
    run("qemu-img", "create", *secret, "-f", "luks", "-o", options, path, size)


def test_a_container_in_a_volume_of_cryptsetup_opens_here(tmp_path: Path) -> None:
    """cryptsetup makes the volume; we put a container into it, and it is a store."""
    path, key = tmp_path / "image", tmp_path / "key"
    key.write_bytes(SECRET)
    with path.open("wb") as file:
        file.truncate(20 << 20)
    kdf = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    run("cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", *kdf, path, key)
    with luks.open(path, SECRET, read_only=False) as volume:
        blobstore.initialise(volume, [blobstore.SectionSpec("a", 100)], encrypted=True)
    with blobstore.open(path, SECRET) as store:
        store.put("a", b"in a foreign volume")
    with blobstore.open(path, SECRET, read_only=True) as store:
        assert store.get("a") == b"in a foreign volume"


def test_the_devices_accept_what_comes_out_of_the_store(tmp_path: Path) -> None:
    """swtpm, lspci and fw_printenv read their state as it was put in."""
    image = Made(tmp_path, KINDS[2])
    image.make(detached=False)
    with blobstore.open(image.path, SECRET, read_only=True) as store:
        state = store.get("tpm-permanent-state")
        assert b"blobstore" in swtpm_nv_read(state, 0x1500016)
        assert "checksum good" in lspci_vpd(store.get("adapter-vpd"))
        assert fw_printenv(store.get("uboot-environment"))


def test_dissect_reads_an_empty_container_too(tmp_path: Path) -> None:
    image = Made(tmp_path, KINDS[2])
    blobstore.create(image.path, {}, SECRET, kdf=PBKDF2, free=0).close()
    image.contents = {}
    assert io.BytesIO(_by_dissect(image)).read(1) == b"\x73"
