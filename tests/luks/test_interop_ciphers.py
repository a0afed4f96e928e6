"""cryptsetup and QEMU read every cipher as we write it, and we read it as they do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

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
from tests.luks.support import OTHER, PASSPHRASE, PBKDF2
from tests.support.foreign import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

SIZE = 64 << 10

#: Cipher, key size and sector size of LUKS2 volumes; cryptsetup without the
#: kernel has AES only.
LUKS2 = [
    ("aes-xts-plain64", 64, 4096),
    ("aes-xts-plain", 32, 512),
    ("aes-xts-plain", 64, 4096),
    ("aes-xts-plain64be", 64, 2048),
    ("aes-xts-benbi", 32, 1024),
    ("aes-xts-essiv:sha256", 64, 4096),
    ("aes-xts-null", 32, 512),
    ("aes-cbc-plain", 16, 512),
    ("aes-cbc-plain", 32, 4096),
    ("aes-cbc-plain64", 24, 1024),
    ("aes-cbc-plain64be", 32, 4096),
    ("aes-cbc-essiv:sha256", 16, 512),
    ("aes-cbc-essiv:sha256", 24, 4096),
    ("aes-cbc-essiv:sha256", 32, 2048),
    ("aes-cbc-essiv:md5", 32, 512),
    ("aes-cbc-benbi", 16, 4096),
    ("aes-cbc-null", 32, 512),
    ("aes-cbc-eboiv", 16, 4096),
    ("aes-ctr-plain64", 16, 512),
    ("aes-ctr-plain", 24, 4096),
    ("aes-ctr-plain64be", 32, 1024),
    ("aes-ecb", 16, 512),
    ("aes-ecb", 32, 4096),
]


def make(path: Path, cipher: str, key_size: int, **options: Any) -> bytes:
    """Make a volume with random content, and return that."""
    data = os.urandom(SIZE)
    with luks.format(
        path,
        PASSPHRASE,
        **{"size": SIZE, "kdf": PBKDF2, "cipher": cipher, "key_size": key_size, **options},
    ) as volume:
        volume.write(0, data)
    return data


@pytest.mark.parametrize(("cipher", "key_size", "sector_size"), LUKS2)
def test_cryptsetup_opens_the_keyslots_of_each_cipher_of_ours(
    cipher: str, key_size: int, sector_size: int, tmp_path: Path
) -> None:
    """And we open those that it adds; payload and key material have one cipher."""
    image = tmp_path / "image"
    data = make(image, cipher, key_size, sector_size=sector_size)
    key, other = key_file(tmp_path, PASSPHRASE), key_file(tmp_path, OTHER)
    assert accepts(image, key)
    assert not accepts(image, other)
    cryptsetup("luksAddKey", *CHEAP["pbkdf2"], "--key-file", key, image, other)
    with luks.open(image, OTHER) as volume:
        assert volume.header.keyslots[1].area.cipher == volume.header.keyslots[0].area.cipher
        assert volume.read(0, SIZE) == data


# cryptsetup measures a digest of its own when it decrypts, which takes a second.
@pytest.mark.parametrize(("cipher", "key_size", "sector_size"), LUKS2)
def test_we_decrypt_what_cryptsetup_encrypts_and_it_decrypts_what_we_encrypt(
    cipher: str, key_size: int, sector_size: int, tmp_path: Path
) -> None:
    """Its offline re-encryption from nothing, and to nothing, on a file."""
    image, key = tmp_path / "image", key_file(tmp_path, PASSPHRASE)
    data = os.urandom(SIZE)
    image.write_bytes(data + bytes(4 << 20))
    cryptsetup(
        *("reencrypt", "--encrypt", "--type=luks2", *CHEAP["pbkdf2"]),
        *(f"--cipher={cipher}", f"--key-size={key_size * 8}", f"--sector-size={sector_size}"),
        *("--force-offline-reencrypt", "--reduce-device-size=4M", "--key-file", key, image),
    )
    new = os.urandom(SIZE // 2)
    with luks.open(image, PASSPHRASE, read_only=False) as volume:
        assert (volume.header.cipher, volume.header.sector_size) == (cipher, sector_size)
        assert volume.read(0, SIZE) == data
        volume.write(777, new)
    cryptsetup(
        *("reencrypt", "--decrypt", "--force-offline-reencrypt", "--key-file", key),
        *("--header", tmp_path / "header", image),
    )
    assert image.read_bytes()[:SIZE] == data[:777] + new + data[777 + len(new) :]


#: Cipher and key size of LUKS1 volumes; QEMU has these without the kernel. Key
#: material of 24-byte keys does not end with a sector, which QEMU does not take.
LUKS1 = [
    (f"{cipher}-{mode}", size * (2 if mode.startswith("xts") else 1))
    for cipher, size, chosen in (
        ("aes", 16, ("cbc-plain", "ctr-plain64", "ecb-plain64", "xts-plain")),
        ("aes", 24, ("xts-plain64",)),
        ("aes", 32, ("cbc-plain64", "cbc-essiv:sha256", "xts-essiv:sha256")),
        ("serpent", 16, ("cbc-plain", "xts-plain64", "ecb-plain64")),
        ("serpent", 24, ("xts-plain",)),
        ("serpent", 32, ("cbc-essiv:sha256", "xts-plain64", "ctr-plain64")),
        ("twofish", 16, ("cbc-plain", "xts-plain64", "ecb-plain64")),
        ("twofish", 24, ("xts-plain", "xts-essiv:sha256")),
        ("twofish", 32, ("cbc-essiv:sha256", "xts-plain64")),
        ("cast5", 16, ("cbc-plain", "cbc-plain64", "ecb-plain64", "ctr-plain64")),
    )
    for mode in chosen
]


@pytest.mark.parametrize(("cipher", "key_size"), LUKS1)
def test_qemu_reads_each_cipher_of_ours_and_we_read_what_it_writes(
    cipher: str, key_size: int, tmp_path: Path
) -> None:
    image, key = tmp_path / "image", key_file(tmp_path, PASSPHRASE)
    data = make(image, cipher, key_size, version=1)
    assert qemu_read(image, key, tmp_path / "plain") == data
    qemu_io(image, key, "write -P 0x5a 512 4096")
    with luks.open(image, PASSPHRASE, read_only=False) as volume:
        assert volume.read(0, SIZE) == data[:512] + b"\x5a" * 4096 + data[4608:]
    new = os.urandom(SIZE)
    (tmp_path / "new").write_bytes(new)
    qemu_write(image, key, tmp_path / "new")
    with luks.open(image, PASSPHRASE, read_only=False) as volume:
        assert volume.read(0, SIZE) == new
        volume.write(777, data[:5000])
    assert qemu_read(image, key, tmp_path / "plain") == new[:777] + data[:5000] + new[5777:]


@pytest.mark.parametrize("hash_name", ["sha1", "sha224", "sha384", "sha512", "ripemd160", "md5"])
def test_qemu_opens_keyslots_of_each_hash_of_ours(hash_name: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    options: dict[str, Any] = {"hash_name": hash_name, "kdf": luks.Pbkdf2(hash_name, 1000)}
    data = make(image, "aes-cbc-plain64", 32, version=1, **options)
    assert qemu_read(image, key_file(tmp_path, PASSPHRASE), tmp_path / "plain") == data


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "hash_name",
    [
        *("sha1", "sha224", "sha384", "sha512", "ripemd160", "whirlpool"),
        *("sha3-224", "sha3-256", "sha3-384", "sha3-512", "blake2b-512", "blake2s-256"),
    ],
)
def test_cryptsetup_opens_keyslots_of_each_hash_of_ours(
    hash_name: str, version: int, tmp_path: Path
) -> None:
    """PBKDF2, AF and digest; and we open those that it adds."""
    image = tmp_path / "image"
    options: dict[str, Any] = {"hash_name": hash_name, "kdf": luks.Pbkdf2(hash_name, 1000)}
    make(image, "aes-xts-plain64", 64, version=version, **options)
    key, other = key_file(tmp_path, PASSPHRASE), key_file(tmp_path, OTHER)
    assert accepts(image, key)
    cryptsetup(
        *("luksAddKey", *CHEAP["pbkdf2"], f"--hash={hash_name}"), "--key-file", key, image, other
    )
    luks.open(image, OTHER).close()


# QEMU measures its key derivation for seconds, whatever it is told.
@pytest.mark.parametrize(
    ("options", "cipher"),
    [
        ("cipher-alg=serpent-192,cipher-mode=xts,hash-alg=ripemd160", "serpent-xts-plain64"),
        ("cipher-alg=cast5-128,cipher-mode=ctr,ivgen-alg=plain", "cast5-ctr-plain"),
    ],
)
def test_we_use_what_qemu_makes_of_other_ciphers(options: str, cipher: str, tmp_path: Path) -> None:
    image, key = tmp_path / "image", key_file(tmp_path, PASSPHRASE)
    run(
        *("qemu-img", "create", "-q", "-f", "luks", "--object", f"secret,id=s0,file={key}"),
        *("-o", f"key-secret=s0,iter-time=10,{options}", image, str(SIZE)),
    )
    data = os.urandom(SIZE)
    with luks.open(image, PASSPHRASE, read_only=False) as volume:
        assert volume.header.cipher == cipher
        volume.write(0, data)
    assert qemu_read(image, key, tmp_path / "plain") == data
