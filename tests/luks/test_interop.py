"""The real cryptsetup and QEMU accept every image of this project, and it accepts theirs."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from dissect.fve import luks as dissect_luks

import luks
from tests.luks.programs import (
    CHEAP,
    accepts,
    cryptsetup,
    key_file,
    qemu_io,
    qemu_read,
    qemu_write,
)
from tests.luks.support import ARGON2I, ARGON2ID, OTHER, PASSPHRASE, PBKDF2
from tests.support.foreign import ForeignProgramError, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

SIZE = 256 << 10


@dataclass(frozen=True)
class Case:
    """One kind of image."""

    version: int
    key_size: int = 64
    sector_size: int = 512
    kdf: str = "pbkdf2"
    detached: bool = False

    def __str__(self) -> str:
        place = "detached" if self.detached else "attached"
        return f"luks{self.version}-{self.key_size}-{self.sector_size}-{self.kdf}-{place}"

    def ours(self, directory: Path, **options: Any) -> Image:
        """Let our code make it."""
        image = Image(directory / "payload", directory / "header" if self.detached else None)
        costs = {"pbkdf2": PBKDF2, "argon2id": ARGON2ID, "argon2i": ARGON2I}
        defaults: dict[str, Any] = {
            "version": self.version,
            "header": image.header,
            "size": SIZE,
            "key_size": self.key_size,
            "sector_size": self.sector_size,
            "kdf": costs[self.kdf],
        }
        luks.format(image.payload, PASSPHRASE, **{**defaults, **options}).close()
        return image

    def cryptsetups(self, directory: Path) -> Image:
        """Let cryptsetup make it."""
        image = Image(directory / "payload", directory / "header" if self.detached else None)
        for path in (image.payload, image.header):
            if path is not None:
                path.touch()
                os.truncate(path, 20 << 20)
        options = [f"--key-size={self.key_size * 8}", *CHEAP[self.kdf]]
        if self.version == 2:
            options.append(f"--sector-size={self.sector_size}")
        if image.header is not None:
            options.append(f"--header={image.header}")
        key = key_file(directory, PASSPHRASE)
        cryptsetup("luksFormat", f"--type=luks{self.version}", *options, image.payload, key)
        return image


@dataclass(frozen=True)
class Image:
    """Where an image lies."""

    payload: Path
    header: Path | None

    @property
    def head(self) -> Path:
        """The file with the header."""
        return self.header or self.payload

    def open(self, secret: bytes, **options: Any) -> luks.Volume:
        return luks.open(self.payload, secret, header=self.header, **options)


LUKS1 = [
    Case(1, key_size, detached=detached) for key_size, detached in product((32, 64), (False, True))
]
LUKS2 = [
    Case(2, key_size, sector_size, kdf, detached)
    for key_size, sector_size, kdf, detached in product(
        (32, 64), (512, 1024, 2048, 4096), CHEAP, (False, True)
    )
]


@pytest.mark.parametrize("case", [*LUKS1, *LUKS2], ids=str)
def test_cryptsetup_uses_what_we_make(case: Case, tmp_path: Path) -> None:
    """cryptsetup dumps, tests, adds a key, backs up; `luks` opens it afterwards with both keys."""
    image = case.ours(tmp_path)
    data = os.urandom(SIZE)
    with image.open(PASSPHRASE, read_only=False) as volume:
        volume.write(0, data)
    key, other = key_file(tmp_path, PASSPHRASE), key_file(tmp_path, OTHER)

    cryptsetup("isLuks", f"--type=luks{case.version}", image.head)
    header = luks.load_header(image.head)
    assert cryptsetup("luksUUID", image.head).strip() == header.uuid
    dump = cryptsetup("luksDump", image.head)
    assert f"Version:       \t{case.version}" in dump
    assert accepts(image.head, key)
    assert not accepts(image.head, other)

    cryptsetup("luksAddKey", *CHEAP[case.kdf], "--key-file", key, image.head, other)
    backup = tmp_path / "backup"
    cryptsetup("luksHeaderBackup", image.head, "--header-backup-file", backup)

    for secret, keyslot in ((PASSPHRASE, 0), (OTHER, 1)):
        with image.open(secret) as volume:
            assert volume.keyslot == keyslot
            assert volume.read(0, SIZE) == data
        with luks.open(image.payload, secret, header=backup) as volume:
            assert volume.read(0, SIZE) == data
    if case.version == 2:
        assert luks.load_header(image.head).seqid > header.seqid


@pytest.mark.parametrize("case", [*LUKS1, *LUKS2], ids=str)
def test_we_use_what_cryptsetup_makes(case: Case, tmp_path: Path) -> None:
    image = case.cryptsetups(tmp_path)
    header = luks.load_header(image.head)
    assert (header.version, header.sector_size) == (case.version, case.sector_size)
    assert header.stale_copy is None
    data = os.urandom(10_000)
    with image.open(PASSPHRASE, read_only=False) as volume:
        assert volume.volume_key_size == case.key_size
        offset = 0 if case.detached else 16 << 20 if case.version == 2 else 2 << 20
        assert volume.size == (20 << 20) - offset
        volume.write(12_345, data)
        volume.flush()
    with image.open(PASSPHRASE) as volume:
        assert volume.read(12_345, len(data)) == data
    with pytest.raises(luks.NoKeyslotMatchError):
        image.open(OTHER)
    assert accepts(image.head, key_file(tmp_path, PASSPHRASE))


def test_the_volume_key_is_the_same_for_both(tmp_path: Path) -> None:
    for case in (Case(1), Case(2, sector_size=4096, kdf="argon2id")):
        directory = tmp_path / str(case)
        directory.mkdir()
        image = case.ours(directory)
        key = key_file(directory, PASSPHRASE)
        dumped = directory / "volume-key"
        cryptsetup(
            *("luksDump", "--dump-volume-key", "--volume-key-file", dumped),
            *("--key-file", key, image.head),
        )
        key_bytes = dumped.read_bytes()
        verified = luks.verify_volume_key(luks.load_header(image.head), key_bytes)
        assert bytes(verified.key.view()) == key_bytes


@pytest.mark.parametrize("sector_size", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("key_size", [32, 64])
def test_cryptsetup_decrypts_our_payload(sector_size: int, key_size: int, tmp_path: Path) -> None:
    """Its offline re-encryption to nothing writes the plaintext in place."""
    image = Case(2, key_size, sector_size).ours(tmp_path, label="to be decrypted")
    data = os.urandom(SIZE)
    with image.open(PASSPHRASE, read_only=False) as volume:
        volume.write(0, data)
    copy, header = tmp_path / "copy", tmp_path / "exported"
    shutil.copy(image.payload, copy)
    cryptsetup(
        *("reencrypt", "--decrypt", "--force-offline-reencrypt", "--header", header),
        *("--key-file", key_file(tmp_path, PASSPHRASE), copy),
    )
    assert copy.read_bytes()[:SIZE] == data


@pytest.mark.parametrize("case", [*LUKS1, *LUKS2], ids=str)
def test_dissect_reads_our_payload(case: Case, tmp_path: Path) -> None:
    image = case.ours(tmp_path)
    data = os.urandom(SIZE)
    with image.open(PASSPHRASE, read_only=False) as volume:
        volume.write(0, data)
        offset = volume.header.data_offset
    with image.head.open("rb") as head, image.payload.open("rb") as payload:
        crypt = dissect_luks.LUKS(head)
        crypt.unlock_with_passphrase(PASSPHRASE.decode())
        if case.detached:
            crypt.fh = payload
        assert offset == (0 if case.detached else 2 << 20)
        assert crypt.open().read(SIZE) == data


@pytest.mark.parametrize("case", LUKS1, ids=str)
def test_qemu_reads_what_we_write_and_we_read_what_it_writes(case: Case, tmp_path: Path) -> None:
    image = case.ours(tmp_path)
    key = key_file(tmp_path, PASSPHRASE)
    data = os.urandom(SIZE)
    with image.open(PASSPHRASE, read_only=False) as volume:
        volume.write(0, data)
    assert qemu_read(image.payload, key, tmp_path / "plain", header=image.header) == data

    qemu_io(
        image.payload, key, "write -P 0x5a 512 4096", "read -P 0x5a 512 4096", header=image.header
    )
    with image.open(PASSPHRASE) as volume:
        assert volume.read(0, SIZE) == data[:512] + b"\x5a" * 4096 + data[4608:]

    source = tmp_path / "source"
    source.write_bytes(os.urandom(SIZE))
    qemu_write(image.payload, key, source, header=image.header)
    with image.open(PASSPHRASE) as volume:
        assert volume.read(0, SIZE) == source.read_bytes()


@pytest.mark.parametrize("case", LUKS1, ids=str)
def test_qemu_adds_a_key_to_what_we_make(case: Case, tmp_path: Path) -> None:
    """It demands our eight slots of 4000 stripes."""
    image = case.ours(tmp_path)
    key, other = key_file(tmp_path, PASSPHRASE), key_file(tmp_path, OTHER)
    with pytest.raises(ForeignProgramError):
        qemu_read(image.payload, other, tmp_path / "plain", header=image.header)
    if image.header is None:
        run(
            *("qemu-img", "amend", "--object", f"secret,id=s0,file={key}"),
            *("--object", f"secret,id=s1,file={other}", "--image-opts"),
            f"driver=luks,key-secret=s0,file.filename={image.payload}",
            *("-o", "state=active,new-secret=s1,iter-time=10"),
        )
        for secret in (PASSPHRASE, OTHER):
            image.open(secret).close()


@pytest.mark.parametrize("cipher", ["aes-128", "aes-256"])
def test_we_use_what_qemu_makes(cipher: str, tmp_path: Path) -> None:
    image, key = tmp_path / "image", key_file(tmp_path, PASSPHRASE)
    run(
        *("qemu-img", "create", "-q", "-f", "luks", "--object", f"secret,id=s0,file={key}"),
        *("-o", f"key-secret=s0,iter-time=10,cipher-alg={cipher}", image, str(SIZE)),
    )
    header = luks.load_header(image)
    end = 4096 + 8 * {"aes-128": 131_072, "aes-256": 258_048}[cipher]
    assert (header.version, header.cipher, header.data_offset) == (1, "aes-xts-plain64", end)
    data = os.urandom(SIZE)
    with luks.open(image, PASSPHRASE, read_only=False) as volume:
        assert volume.size == SIZE
        volume.write(0, data)
    assert qemu_read(image, key, tmp_path / "plain") == data


@pytest.mark.parametrize("key_size", [32, 64])
def test_cryptsetup_converts_our_layout_to_luks1(key_size: int, tmp_path: Path) -> None:
    """L2: the compact areas leave room for LUKS1's eight keyslots."""
    image = Case(2, key_size).ours(tmp_path)
    data = os.urandom(SIZE)
    with image.open(PASSPHRASE, read_only=False) as volume:
        volume.write(0, data)
    cryptsetup("convert", "--type=luks1", image.payload)
    header = luks.load_header(image.payload)
    assert (header.version, header.data_offset) == (1, 2 << 20)
    with image.open(PASSPHRASE) as volume:
        assert volume.read(0, SIZE) == data
    assert qemu_read(image.payload, key_file(tmp_path, PASSPHRASE), tmp_path / "plain") == data
    cryptsetup("convert", "--type=luks2", image.payload)
    with image.open(PASSPHRASE) as volume:
        assert volume.header.version == 2
        assert len(volume.header.digests[0].value) == 20
        assert volume.read(0, SIZE) == data


def test_cryptsetup_reencrypts_our_layout(tmp_path: Path) -> None:
    """With two keyslots, which takes four areas and one for the re-encryption."""
    image = Case(2, sector_size=4096).ours(tmp_path)
    data = os.urandom(SIZE)
    with image.open(PASSPHRASE, read_only=False) as volume:
        volume.write(0, data)
        before = volume.header.digests
    key, other = key_file(tmp_path, PASSPHRASE), key_file(tmp_path, OTHER)
    cryptsetup("luksAddKey", *CHEAP["pbkdf2"], "--key-file", key, image.head, other)
    cryptsetup(
        *("reencrypt", "--force-offline-reencrypt", "--key-slot=0", *CHEAP["pbkdf2"]),
        *("--key-file", key, image.payload),
    )
    with image.open(PASSPHRASE) as volume:
        assert volume.header.digests != before
        assert volume.read(0, SIZE) == data


@pytest.mark.parametrize("secret", [b"\0", b"with\nnewline\n", bytes(range(256)), b"\xff" * 4096])
def test_key_files_mean_the_same_to_both(secret: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    key = key_file(tmp_path, secret)
    luks.format(path, luks.Secret.from_file(key), size=4096, kdf=PBKDF2).close()
    assert accepts(path, key)
    added = key_file(tmp_path, secret[::-1] + b"!")
    cryptsetup("luksAddKey", *CHEAP["argon2id"], "--key-file", key, path, added)
    luks.open(path, luks.Secret.from_file(added)).close()


def test_labels_and_unicode_are_the_same_for_both(tmp_path: Path) -> None:
    image = Case(2).ours(tmp_path, label="é" * 23, subsystem="sub")
    dump = cryptsetup("luksDump", image.head)
    assert f"Label:         \t{'é' * 23}" in dump
    assert "Subsystem:     \tsub" in dump
    cryptsetup("config", "--label=näu", "--subsystem=", image.head)
    header = luks.load_header(image.head)
    assert (header.label, header.subsystem) == ("näu", "")


def test_foreign_tokens_and_priorities_are_read(tmp_path: Path) -> None:
    image = Case(2).ours(tmp_path)
    token = tmp_path / "token"
    token.write_text('{"type":"acme","keyslots":["0"],"x":{"y":[1,"é"]}}')
    cryptsetup("token", "import", "--json-file", token, "--token-id=5", image.head)
    cryptsetup("config", "--key-slot=0", "--priority=prefer", image.head)
    header = luks.load_header(image.head)
    assert (header.tokens[5].type, header.tokens[5].keyslots) == ("acme", (0,))
    assert header.tokens[5].body["x"] == {"y": [1, "é"]}
    assert header.keyslots[0].priority == 2


def test_cryptsetup_repairs_what_we_recover(tmp_path: Path) -> None:
    image = Case(2).ours(tmp_path)
    with image.head.open("r+b") as file:
        file.write(bytes(16384))
    assert luks.load_header(image.head).stale_copy == 0
    image.open(PASSPHRASE).close()
    cryptsetup("isLuks", image.head)
    assert luks.load_header(image.head).stale_copy is None


def test_an_interrupted_reencryption_is_told(tmp_path: Path) -> None:
    image = Case(2, sector_size=4096).ours(tmp_path)
    cryptsetup(
        *("reencrypt", "--init-only", "--force-offline-reencrypt", "--key-slot=0"),
        *(*CHEAP["pbkdf2"], "--key-file", key_file(tmp_path, PASSPHRASE), image.payload),
    )
    assert luks.load_header(image.head).requirements == ("online-reencrypt-v2",)
    status = luks.reencryption_status(image.payload)
    assert status is not None
    assert status.position == 0
    image.open(PASSPHRASE).close()  # for reading, as it is (L180)
