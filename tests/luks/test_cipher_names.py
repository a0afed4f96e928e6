"""Cipher strings: what is served, by which library, and what is refused how."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luks.crypto import blockcipher, ciphers, gcrypt, nettle
from luks.crypto.spec import check_spec, parse
from luks.errors import PolicyError, UnsupportedError
from tests.luks.test_ciphers import CASES, encrypted, random_key

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("aes-xts-plain64", ("aes", "xts", "plain64", "")),
        ("aes-cbc-essiv:sha256", ("aes", "cbc", "essiv", "sha256")),
        ("aes-ecb", ("aes", "ecb", "", "")),
        ("cipher_null-ecb", ("cipher_null", "ecb", "", "")),
        ("capi:xts(ecb(aes-generic))-plain64", ("capi", "", "plain64", "")),
        ("xchacha12,aes-adiantum-plain64", ("xchacha12,aes", "adiantum", "plain64", "")),
        ("", ("", "", "", "")),
    ],
)
def test_cipher_strings_are_taken_apart(text: str, parts: tuple[str, str, str, str]) -> None:
    spec = parse(text)
    assert (spec.cipher, spec.mode, spec.iv, spec.iv_option) == parts


@pytest.mark.parametrize(
    ("text", "key_size"),
    [
        ("aes-xts-plain64", 16),
        ("aes-cbc-essiv:sha512", 32),
        ("aes-cbc-essiv:sha1", 16),
        ("cast5-cbc-essiv:sha256", 16),
        ("aes-ctr-benbi", 16),
        ("aes-xts-eboiv", 64),
        ("aes-ctr-eboiv", 16),
        ("cast6-xts-plain64", 64),
        ("capi:xts(ecb(aes-generic))-plain64", 64),
        ("AES-xts-plain64", 64),
        ("", 64),
    ],
)
def test_l71_ciphers_that_are_not_served_are_named(text: str, key_size: int) -> None:
    with pytest.raises(UnsupportedError) as caught:
        ciphers.sector_cipher(text, os.urandom(key_size), 512)
    assert repr(text) in str(caught.value)
    assert caught.value.feature == f"cipher {text}"
    assert caught.value.hint is None


def _without(*libraries: str) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        if "gcrypt" in libraries:
            monkeypatch.setattr(gcrypt, "_library", lambda: None)
        if "nettle" in libraries:
            monkeypatch.setattr(nettle, "_description", lambda *_: None)
        if "cryptography" in libraries:
            monkeypatch.setattr(blockcipher, "_from_cryptography", lambda *_: None)

    return patch


@pytest.mark.parametrize(
    ("text", "key_size", "remedy"),
    [
        ("serpent-xts-plain64", 64, gcrypt.REMEDY),
        ("serpent-cbc-essiv:sha256", 16, gcrypt.REMEDY),
        ("twofish-cbc-plain64", 32, gcrypt.REMEDY),
        ("twofish-xts-plain64", 48, nettle.REMEDY),
        ("aes-cbc-essiv:whirlpool", 32, gcrypt.REMEDY),
    ],
)
def test_l71_without_the_shared_libraries_the_remedy_is_named(
    text: str, key_size: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without("gcrypt", "nettle")(monkeypatch)
    check_spec(parse(text), key_size)
    with pytest.raises(UnsupportedError, match="cannot be used") as caught:
        ciphers.check_usable(text, key_size)
    assert repr(text) in str(caught.value)
    assert caught.value.feature == f"cipher {text}"
    assert caught.value.hint == remedy


@pytest.mark.parametrize(("text", "key_size"), CASES)
def test_l71_what_cryptography_has_needs_no_shared_library(
    text: str, key_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without("gcrypt", "nettle")(monkeypatch)
    if text.startswith(("serpent", "twofish")):
        with pytest.raises(UnsupportedError):
            encrypted(text, random_key(key_size), 1, bytes(512))
    else:
        assert encrypted(text, random_key(key_size), 1, bytes(512)) != bytes(512)


@pytest.mark.parametrize("text", ["cast5-cbc-plain64", "camellia-cbc-plain64", "sm4-ctr-plain"])
def test_l71_what_cryptography_lost_comes_from_libgcrypt(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = encrypted(text, random_key(16), 1, bytes(512))
    _without("cryptography")(monkeypatch)
    assert encrypted(text, random_key(16), 1, bytes(512)) == before


def test_libgcrypt_is_loaded_for_what_needs_it_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def loads() -> None:
        raise AssertionError

    monkeypatch.setattr(gcrypt, "_library", loads)
    monkeypatch.setattr(nettle, "_library", loads)
    for text, size in (("aes-xts-plain64", 64), ("aes-cbc-essiv:sha256", 32), ("sm4-ecb", 16)):
        encrypted(text, random_key(size), 1, bytes(512))


def test_what_libgcrypt_refuses_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gcrypt._CIPHERS, ("twofish", 24), 10)
    with pytest.raises(UnsupportedError, match="Invalid key length"):
        gcrypt.GcryptCipher("twofish", bytes(24), 16).encryptor()


@pytest.mark.parametrize("text", ["cipher_null-ecb", "capi:ecb(cipher_null)-plain"])
def test_null_ciphers_are_refused(text: str) -> None:
    """L62."""
    with pytest.raises(PolicyError, match="encrypts nothing"):
        ciphers.sector_cipher(text, bytes(32), 512)
    cipher = ciphers.sector_cipher(text, bytes(32), 512, permit_null=True)
    for crypt in (cipher.encrypt, cipher.decrypt):
        out = bytearray(b"old!")
        crypt(0, b"data", memoryview(out))
        assert out == b"data"
        crypt(0, memoryview(out), out)
        assert out == b"data"


@settings(deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            [
                "aes",
                "serpent",
                "cast5",
                "des3_ede",
                "cast6",
                "cipher_null",
                "null",
                "capi",
                "xts",
                "cbc",
                "ctr",
                "ecb",
                "lrw",
                "plain",
                "plain64",
                "benbi",
                "essiv",
                ":",
                "-",
                "sha256",
                "md5",
                "whirlpool",
                "sha512",
                "(",
                "é",
                "\x00",
            ]
        )
        | st.text(max_size=3),
        max_size=8,
    ),
    dashes=st.booleans(),
    key_size=st.sampled_from([0, 1, 8, 16, 24, 32, 40, 48, 64, 128, -1, 2**40]),
)
def test_any_cipher_string_is_served_or_refused(
    parts: list[str], dashes: bool, key_size: int
) -> None:
    text = ("-" if dashes else "").join(parts)
    try:
        ciphers.check_usable(text, key_size)
    except (UnsupportedError, PolicyError):
        return
    out = bytearray(512)
    key = random_key(key_size)
    ciphers.sector_cipher(text, key, 512).encrypt(2**63, bytes(512), out)
    assert out != bytes(512)


@pytest.mark.parametrize(
    ("text", "key_size"),
    [
        ("aes-xfs-plain64", 64),
        ("aes-", 32),
        ("aes-cbc", 32),
        ("aes-cbc-plain65", 32),
        ("aes-cbc-essiv:", 32),
        ("aes-cbc-essiv:sha257", 32),
        ("aes-xts-plain64", 33),
        ("aes-cbc-plain64", 33),
        ("cast5-xts-plain64", 32),
        ("des3_ede-lrw-benbi", 40),
        ("nonsense-xts-plain64", 64),
    ],
)
def test_ciphers_that_nobody_has_are_told_from_those_missing_here(text: str, key_size: int) -> None:
    with pytest.raises(UnsupportedError):
        check_spec(parse(text), key_size)


@pytest.mark.parametrize(
    ("text", "key_size"),
    [("cast6-cbc-plain64", 32), ("aes-cbc-essiv:sha512", 32), ("cipher_null-ecb", 32)],
)
def test_ciphers_of_other_programs_are_known(text: str, key_size: int) -> None:
    check_spec(parse(text), key_size)


def test_l71_the_default_cipher_costs_no_other_library() -> None:
    """Nor the import of what would load it."""
    code = (
        "import sys\n"
        "from luks.crypto.ciphers import sector_cipher\n"
        "sector_cipher('aes-xts-plain64', bytes(range(64)), 4096)\n"
        "loaded = {'ctypes', 'luks.crypto.gcrypt', 'luks.crypto.modes'} & set(sys.modules)\n"
        "sys.exit(str(loaded) if loaded else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
