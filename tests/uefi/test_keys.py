"""Certificates and signed files, made by the programs that people make them with (F38, F40)."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from blobstore import Signatures, UefiVariables
from blobstore.errors import StateAuthenticationError
from blobstore.foreign.certificates import describe_certificate
from formats.errors import FormatError, TruncatedImageError
from formats.state.uefi.signatures import X509, decode_lists
from tests.support.foreign import run
from tests.uefi.samples import OTHER

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop


@dataclass(frozen=True)
class Keys:
    """Certificates and keys: PK, KEK and db, and one that PK has certified."""

    directory: Path

    def pem(self, name: str) -> Path:
        return self.directory / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def der(self, name: str) -> bytes:
        return run("openssl", "x509", "-in", self.pem(name), "-outform", "DER")

    def lists(self, name: str) -> Path:
        target = self.directory / f"{name}.esl"
        run("cert-to-efi-sig-list", "-g", OTHER, self.pem(name), target)
        return target

    def signed(self, content: Path, variable: str, signer: str, *options: str) -> bytes:
        """Return what sign-efi-sig-list makes of signature lists."""
        target = self.directory / "signed.auth"
        keys = ("-k", self.key(signer), "-c", self.pem(signer))
        run("sign-efi-sig-list", *options, *keys, variable, content, target)
        return target.read_bytes()


def make_keys(directory: Path) -> Keys:
    keys = Keys(directory)
    new = ("req", "-new", "-newkey", "rsa:2048", "-nodes", "-sha256", "-subj")
    for name in ("PK", "KEK", "db"):
        subject = f"/CN=test {name}/"
        target = ("-keyout", keys.key(name), "-out", keys.pem(name))
        run("openssl", *new, subject, "-x509", "-days", "3650", *target)
    request = directory / "request"
    run("openssl", *new, "/CN=test child/", "-keyout", keys.key("child"), "-out", request)
    signer = ("-CA", keys.pem("KEK"), "-CAkey", keys.key("KEK"), "-CAcreateserial", "-sha256")
    run("openssl", "x509", "-req", "-in", request, *signer, "-out", keys.pem("child"))
    return keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


def enrolled(keys: Keys) -> UefiVariables:
    """Return the variables of a machine with all three."""
    variables = UefiVariables(())
    for name in ("PK", "KEK", "db"):
        variables = variables.enrol(name, Signatures.decode(keys.pem(name).read_bytes(), OTHER))
    return variables


def test_f38_certificates_are_taken_as_pem_and_der_and_lists(keys: Keys) -> None:
    der = Signatures.decode(keys.der("db"), OTHER)
    pem = Signatures.decode(keys.pem("db").read_bytes(), OTHER)
    lists = Signatures.decode(keys.lists("db").read_bytes())
    assert der == pem == lists
    assert (der.entries[0].kind, der.entries[0].data) == (X509, keys.der("db"))
    assert UefiVariables(()).enrol("db", pem)["db"].data == keys.lists("db").read_bytes()
    both = keys.pem("db").read_bytes() + keys.pem("KEK").read_bytes()
    assert [entry.data for entry in Signatures.decode(both).entries] == [
        keys.der("db"),
        keys.der("KEK"),
    ]
    assert Signatures.decode(b"Subject: db\n" + both).entries[0].owner == uuid.UUID(int=0)


def test_f38_damaged_certificates_are_refused(keys: Keys) -> None:
    der = keys.der("db")
    for wrong in (der[:-1], der + b"\0", b"\x30\x00", keys.pem("db").read_bytes()[:300], b"text"):
        with pytest.raises(FormatError, match="F38"):
            Signatures.decode(wrong)
    with pytest.raises(FormatError, match="F37"):
        Signatures.decode(keys.lists("db").read_bytes()[:-1])
    with pytest.raises(FormatError, match="SHA-256"):
        Signatures.of_hash("01" * 31)
    assert describe_certificate(der)["subject"] == "CN=test db"
    assert describe_certificate(der[:-1]) == {}


def test_f40_signed_files_replace_and_extend(keys: Keys) -> None:
    variables = enrolled(keys)
    content = keys.lists("child")
    signed = Signatures.decode(keys.signed(content, "db", "KEK", "-t", "2030-01-02 03:04:05"))
    changed = variables.enrol("db", signed)
    assert changed["db"].data == content.read_bytes()
    assert changed.describe("db")["time"] == "2030-01-02T03:04:05Z"
    update = Signatures.decode(keys.signed(content, "dbx", "KEK", "-a"))
    appended = variables.append("dbx", update)
    assert appended["dbx"].data == content.read_bytes()
    assert appended.append("dbx", update) == appended
    both = variables.append("db", signed)
    assert [entry.data for entry in decode_lists(both["db"].data)] == [
        keys.der("db"),
        keys.der("child"),
    ]
    assert both.describe("db")["time"] == "2030-01-02T03:04:05Z"
    nothing = keys.directory / "nothing"
    nothing.write_bytes(b"")
    removal = Signatures.decode(keys.signed(nothing, "PK", "PK"))
    assert "PK" not in variables.enrol("PK", removal)


@pytest.mark.parametrize(
    ("variable", "signer", "accepted"),
    [
        ("db", "KEK", True),
        ("db", "PK", True),
        ("db", "child", True),  # KEK has certified it
        ("db", "db", False),
        ("KEK", "PK", True),
        ("KEK", "KEK", False),
        ("PK", "PK", True),
        ("PK", "db", False),
    ],
)
def test_f40_the_signer_must_be_one_that_firmware_accepts(
    keys: Keys, variable: str, signer: str, *, accepted: bool
) -> None:
    signed = Signatures.decode(keys.signed(keys.lists("child"), variable, signer))
    variables = enrolled(keys)
    if accepted:
        assert variable in variables.enrol(variable, signed)
        return
    with pytest.raises(StateAuthenticationError, match="not trusted") as raised:
        variables.enrol(variable, signed)
    assert "--any-signer" in str(raised.value.hint)
    assert variable in variables.enrol(variable, signed, any_signer=True)
    assert variable in UefiVariables(()).enrol(variable, signed)  # there is no PK


def test_f40_a_signature_is_for_one_variable_and_all_bytes(keys: Keys) -> None:
    content = keys.signed(keys.lists("child"), "db", "KEK")
    signed = Signatures.decode(content)
    none = UefiVariables(())
    for name in ("dbx", "KEK"):
        with pytest.raises(StateAuthenticationError, match="does not verify"):
            none.enrol(name, signed, any_signer=True)
    start = content.index(keys.lists("child").read_bytes())
    for at in [*range(40), *range(40, start, 31), *range(start, len(content), 61)]:
        altered = bytearray(content)
        altered[at] ^= 0x10
        try:
            none.enrol("db", Signatures.decode(bytes(altered)), any_signer=True)
        except (StateAuthenticationError, FormatError):
            continue
        assert 40 <= at < start  # of PKCS#7, not all bytes are signed
    for size in range(40, start, 97):
        with pytest.raises((TruncatedImageError, FormatError)):
            Signatures.decode(content[:size])


def test_f40_files_signed_as_openssl_signs_are_taken(keys: Keys) -> None:
    """With signed attributes and ContentInfo, unlike sign-efi-sig-list."""
    lists = keys.lists("child")
    bundle = keys.directory / "bundle"
    run("sign-efi-sig-list", "-o", "-t", "2030-01-02 03:04:05", "db", lists, bundle)
    options = ("-binary", "-sign", "-md", "sha256", "-outform", "DER", "-nosmimecap")
    signature = run(
        *("openssl", "smime", *options, "-in", bundle),
        *("-signer", keys.pem("KEK"), "-inkey", keys.key("KEK")),
    )
    plain = keys.signed(lists, "db", "KEK", "-t", "2030-01-02 03:04:05")
    size = (24 + len(signature)).to_bytes(4, "little")
    content = plain[:16] + size + plain[20:40] + signature + lists.read_bytes()
    variables = enrolled(keys)
    assert variables.enrol("db", Signatures.decode(content))["db"].data == lists.read_bytes()
    with pytest.raises(StateAuthenticationError):
        variables.enrol("dbx", Signatures.decode(content))
