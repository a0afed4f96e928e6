"""QEMU's secret objects: its own table of tests, its syntax, and qemu-img beside us."""

from __future__ import annotations

import base64
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import luks
from luks import Secret, SecretObject, SecretObjects
from luks.secret import secret_codec
from tests.luks.support import vectors
from tests.support.foreign import ForeignProgramError, run

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(32))
IV = bytes(range(100, 116))
CASES = {case["name"]: case for case in vectors("secrets.json")}


def encrypted(plain: bytes, *, padding: bytes | None = None) -> bytes:
    """AES-256-CBC with PKCS#7, or with other bytes at the end."""
    count = 16 - len(plain) % 16
    padded = plain + (bytes([count]) * count if padding is None else padding)
    encryptor = Cipher(algorithms.AES(KEY), modes.CBC(IV)).encryptor()
    return encryptor.update(padded) + encryptor.finalize()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


MASTER = f"secret,id=master,data={text(KEY)},format=base64"


def resolve(*definitions: str, secret_id: str = "sec0") -> bytes:
    objects = SecretObjects([SecretObject.parse(definition) for definition in definitions])
    with objects.resolve(secret_id) as secret:
        return bytes(secret.view())


def with_master(data: bytes, *, iv: bytes = IV, more: str = "") -> bytes:
    sealed = f"secret,id=sec0,keyid=master,iv={text(iv)},data={text(data)},format=base64"
    return resolve(MASTER, sealed + more)


def by_table(case: dict[str, Any], directory: Path) -> bytes:
    """Resolve what a line of QEMU's table describes."""
    known = CASES["aes-256-cbc encrypted raw"]
    master = case.get("master_base64", known["master_base64"])
    lines = [f"secret,id=master,data={master},format=base64"]
    path = directory / "data"
    if "file" in case["name"]:
        if "file_bytes" in case:
            path.write_bytes(bytes.fromhex(case["file_bytes"]))
        return resolve(f"secret,id=sec0,file={path}")
    path.write_bytes(bytes.fromhex(case.get("data_hex", known["data_hex"])))
    source, form = (f"file={path}", "raw")
    if "data_base64" in case:
        source, form = (f"data={case['data_base64']}", "base64")
    iv = "" if case["name"] == "missing iv" else f",iv={case.get('iv_base64', known['iv_base64'])}"
    return resolve(*lines, f"secret,id=sec0,keyid=master{iv},{source},format={form}")


@pytest.mark.parametrize("name", CASES)
def test_s25_qemus_own_table_of_tests(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.get("error"):
        with pytest.raises(luks.UnlockError):
            by_table(case, tmp_path)
    else:
        assert by_table(case, tmp_path) == case["result_utf8"].encode()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("missing file", luks.SecretRequiredError),
        ("short master key", luks.SecretFormatError),
        ("short iv", luks.SecretFormatError),
        ("missing iv", luks.SecretObjectError),
    ],
)
def test_each_error_of_qemus_table_has_its_class(
    name: str, kind: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(kind):
        by_table(CASES[name], tmp_path)


@pytest.mark.parametrize(
    ("definition", "data"),
    [
        ("secret,id=sec0,data=a,,b", b"a,b"),
        ("secret,id=sec0,data=a,,,,b", b"a,,b"),
        ("secret,id=sec0,data=,,,", b","),
        ("secret,id=sec0,data=a=b", b"a=b"),
        ("secret,id=sec0,data=", b""),
        ("secret,data=x,format=raw,id=sec0", b"x"),
        ("qom-type=secret,id=sec0,data=x", b"x"),
        ("id=sec0,qom-type=secret,data=x", b"x"),
        ("secret,id=sec0,data=x,", b"x"),
        ("secret,id=sec0,data=pw\n", b"pw\n"),
        ("secret,id=sec0,data=\u00e4", b"\xc3\xa4"),
        ("secret,id=sec0,data=/w==,format=base64", b"\xff"),
        ("secret,id=sec0,data=YW\nJj\n,format=base64", b"abc"),
        ('{"qom-type": "secret", "id": "sec0", "data": "a,b"}', b"a,b"),
    ],
)
def test_s20_qemus_syntax(definition: str, data: bytes) -> None:
    assert resolve(definition) == data


@pytest.mark.parametrize(
    "definition",
    [
        "",
        ",",
        "secret",
        "secret,",
        "secret,data=hunter2",
        "iothread,id=sec0",
        "secret,id=sec0",
        "secret,id=sec0,file=x,data=hunter2",
        "secret,id=sec0,data=hunter2,serial=5",
        "secret,id=sec0,data=hunter2,hunter2",
        "secret,id=sec0,data=hunter2,,hunter2,hunter2",
        "secret,id=sec0,data=hunter2,hunter2=x",
        "secret,id=sec0,,data=hunter2",
        "secret,,id=sec0,data=hunter2",
        "secret,id=sec0,data=hunter2,data=hunter2",
        "secret,id=sec0,id=sec0,data=hunter2",
        "secret,id=0sec,data=hunter2",
        "secret,id=a b,data=hunter2",
        "secret,id=,data=hunter2",
        "secret,id=sec0,data=hunter2,format=hex",
        "secret,id=sec0,data=hunter2,iv=AAAA",
        "secret,id=sec0,data=hunter2,keyid=sec1",
        "secret,id=sec0,data=hunter2\ud800",
        "secret_keyring,id=sec0",
        "secret_keyring,id=sec0,serial=hunter2",
        "secret_keyring,id=sec0,serial=-5",
        "secret_keyring,id=sec0,serial=5,data=hunter2",
        "{",
        '{"qom-type": "secret", "id": "sec0", "data": "hunter2"',
        '{"qom-type": "secret", "id": "sec0", "data": ["hunter2"]}',
        '{"qom-type": "secret", "id": "sec0", "data": "hunter2", "data": "hunter2"}',
        '{"qom-type": "secret", "id": "sec0", "data": {"hunter2": "hunter2"}}',
        '{"qom-type": "secret", "id": "sec0", "data": true}',
        pytest.param('{"x":' * 100_000, id="nested too deep"),
    ],
)
def test_s1_a_definition_that_is_none_is_refused_and_not_quoted(definition: str) -> None:
    with pytest.raises(luks.SecretObjectError) as caught:
        SecretObject.parse(definition)
    assert caught.value.exit_code == 55
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_s21_ids_are_unique_and_there() -> None:
    one = SecretObject.parse("secret,id=sec0,data=x")
    with pytest.raises(luks.SecretObjectError, match="two secrets have the id 'sec0'"):
        SecretObjects([one, one])
    with pytest.raises(luks.SecretObjectError, match="no secret has the id 'other'"):
        resolve("secret,id=sec0,data=x", secret_id="other")
    with pytest.raises(luks.SecretObjectError, match="no secret has the id 'other'"):
        resolve(f"secret,id=sec0,keyid=other,iv={text(IV)},data=x")


def test_s21_a_definition_may_refer_to_a_later_one() -> None:
    sealed = (
        f"secret,id=sec0,keyid=master,iv={text(IV)},data={text(encrypted(b'pw'))},format=base64"
    )
    assert resolve(sealed, MASTER) == resolve(MASTER, sealed) == b"pw"


@pytest.mark.parametrize("content", [b"", b"pw", b"pw\n", b"\n"])
def test_s22_a_file_is_taken_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pw,1"
    path.write_bytes(content)
    escaped = str(path).replace(",", ",,")
    assert resolve(f"secret,id=sec0,file={escaped}") == content
    with path.open("rb") as file:
        assert resolve(f"secret,id=sec0,file=/dev/fdset/{file.fileno()}") == content
        assert not file.closed


def test_s22_a_file_name_may_have_any_bytes(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff"
    with open(name, "wb") as file:  # noqa: PTH123  bytes
        file.write(b"pw")
    assert resolve(f"secret,id=sec0,file={os.fsdecode(name)}") == b"pw"


@pytest.mark.parametrize("content", [b"\xff", b"a\0b", b"\xc0\x80", b"\xed\xa0\x80"])
def test_s23_a_raw_passphrase_is_text_and_base64_is_anything(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "raw").write_bytes(content)
    (tmp_path / "base64").write_text(text(content))
    with pytest.raises(luks.SecretFormatError, match="UTF-8") as caught:
        resolve(f"secret,id=sec0,file={tmp_path}/raw")
    assert caught.value.exit_code == 56
    assert resolve(f"secret,id=sec0,file={tmp_path}/base64,format=base64") == content


@pytest.mark.parametrize(
    "encoded", ["a", "YQ", "YQ=", "YQ===", "YQ==YQ==", "Y Q==", "Y-_=", "YQ==\r\n", "=", "\u00e4"]
)
def test_s23_base64_that_is_none(encoded: str) -> None:
    with pytest.raises(luks.SecretFormatError, match="base64"):
        resolve(f"secret,id=sec0,data={encoded},format=base64")


def test_s25_encrypted_under_a_key_that_is_encrypted_itself() -> None:
    other = bytes(reversed(KEY))
    middle = f"secret,id=m2,keyid=master,iv={text(IV)},data={text(encrypted(other))},format=base64"
    encryptor = Cipher(algorithms.AES(other), modes.CBC(IV)).encryptor()
    data = encryptor.update(b"pw" + bytes([14]) * 14) + encryptor.finalize()
    last = f"secret,id=sec0,keyid=m2,iv={text(IV)},data={text(data)},format=base64"
    assert resolve(last, middle, MASTER) == b"pw"


def test_s25_a_raw_master_key_need_not_be_text(tmp_path: Path) -> None:
    (tmp_path / "master").write_bytes(bytes(range(224, 256)))
    encryptor = Cipher(algorithms.AES(bytes(range(224, 256))), modes.CBC(IV)).encryptor()
    (tmp_path / "pw").write_bytes(encryptor.update(b"pw" + bytes([14]) * 14) + encryptor.finalize())
    assert (
        resolve(
            f"secret,id=master,file={tmp_path}/master",
            f"secret,id=sec0,keyid=master,iv={text(IV)},file={tmp_path}/pw",
        )
        == b"pw"
    )


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1000])
def test_s25_any_size_of_secret(size: int) -> None:
    assert with_master(encrypted(b"x" * size)) == b"x" * size


@pytest.mark.parametrize(
    ("data", "iv", "message"),
    [
        (b"", IV, "0 encrypted bytes"),
        (encrypted(b"pw")[:-1], IV, "15 encrypted bytes"),
        (encrypted(b"pw"), IV[:15], "iv of secret sec0 has 15 bytes"),
        (encrypted(b"pw"), IV + b"x", "iv of secret sec0 has 17 bytes"),
        (encrypted(b"p" * 15, padding=b"\0"), IV, "cannot be decrypted"),
        (encrypted(b"p" * 15, padding=b"\x11"), IV, "cannot be decrypted"),
        (encrypted(b"p" * 14, padding=b"\1\2"), IV, "cannot be decrypted"),
    ],
)
def test_s25_what_does_not_decrypt(data: bytes, iv: bytes, message: str) -> None:
    with pytest.raises(luks.SecretFormatError, match=message):
        with_master(data, iv=iv)


@pytest.mark.parametrize("count", [0, 31, 33])
def test_s25_a_master_key_has_32_bytes(count: int) -> None:
    with pytest.raises(luks.SecretObjectError, match=f"has {count} bytes, not 32"):
        resolve(
            f"secret,id=master,data={text(bytes(count))},format=base64",
            f"secret,id=sec0,keyid=master,iv={text(IV)},data={text(bytes(16))},format=base64",
        )


def test_s25_no_secret_is_encrypted_with_itself() -> None:
    iv = text(IV)
    with pytest.raises(luks.SecretObjectError, match="with itself"):
        resolve(f"secret,id=sec0,keyid=sec0,iv={iv},data=x")
    with pytest.raises(luks.SecretObjectError, match="with itself"):
        resolve(f"secret,id=sec0,keyid=b,iv={iv},data=x", f"secret,id=b,keyid=sec0,iv={iv},data=x")


def test_s3_what_is_refused_is_wiped() -> None:
    for refuse in (secret_codec.require_text, secret_codec.decode_base64):
        refused = Secret(b"hunter2\0")
        with pytest.raises(luks.SecretFormatError):
            refuse(refused, "it")
        with pytest.raises(ValueError, match="wiped"):
            refused.view()


def test_s26_data_in_the_clear_warns_and_encrypted_data_does_not(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    assert resolve("secret,id=sec0,data=hunter2") == b"hunter2"
    assert [(record.levelname, "sec0" in record.message) for record in caplog.records] == [
        ("WARNING", True)
    ]
    assert "hunter2" not in caplog.text
    caplog.clear()
    (tmp_path / "master").write_bytes(KEY)
    sealed = f"secret,id=sec0,keyid=m,iv={text(IV)},data={text(encrypted(b'pw'))},format=base64"
    assert resolve(f"secret,id=m,file={tmp_path}/master", sealed) == b"pw"
    assert not caplog.records


def test_s26_nothing_is_read_before_it_is_needed(tmp_path: Path) -> None:
    objects = SecretObjects([SecretObject.parse(f"secret,id=sec0,file={tmp_path}/pw")])
    (tmp_path / "pw").write_bytes(b"pw")
    assert bytes(objects.resolve("sec0").view()) == b"pw"
    assert "hunter2" not in repr(SecretObject.parse("secret,id=sec0,data=hunter2"))


@pytest.fixture
def qemu_image(tmp_path: Path) -> Path:
    """A LUKS1 image with a passphrase that has a comma and a letter beyond ASCII."""
    path = tmp_path / "image"
    luks.format(
        path, "a,\u00e4".encode(), version=1, size=4096, kdf=luks.Pbkdf2("sha256", 1000)
    ).close()
    return path


@pytest.mark.interop
@pytest.mark.parametrize(
    ("definitions", "opens"),
    [
        (["secret,id=sec0,data=a,,\u00e4"], True),
        (["secret,id=sec0,data=a,,\u00e4,"], True),
        (["secret,id=sec0,data=YSzDpA==,format=base64"], True),
        (["secret,id=sec0,data=YSzD\npA==\n,format=base64"], True),
        (['{"qom-type":"secret","id":"sec0","data":"a,\u00e4"}'], True),
        (["secret,id=sec0,file={}/text"], True),
        (["secret,id=sec0,file={}/newline"], False),
        (["secret,id=sec0,file={}/missing"], False),
        (["secret,id=sec0,data=a,\u00e4"], False),
        (["secret,id=sec0,data=\u00e4"], False),
        (["secret,id=sec0,data=YSzDpA== ,format=base64"], False),
        (["secret,id=other,data=a,,\u00e4"], False),
        (["secret,id=sec0,data=a,,\u00e4,format=hex"], False),
        (["secret,id=sec0,data=a,,\u00e4,file={}/text"], False),
        ([MASTER, "secret,id=sec0,keyid=master,iv={iv},data={sealed},format=base64"], True),
        ([MASTER, "secret,id=sec0,keyid=master,iv={iv},file={}/sealed"], True),
        ([MASTER, "secret,id=sec0,keyid=master,data={sealed},format=base64"], False),
        ([MASTER, "secret,id=sec0,keyid=other,iv={iv},data={sealed},format=base64"], False),
        ([MASTER, "secret,id=sec0,keyid=sec0,iv={iv},data={sealed},format=base64"], False),
    ],
)
def test_qemu_img_takes_the_same_definitions(
    qemu_image: Path, tmp_path: Path, definitions: list[str], opens: bool
) -> None:
    (tmp_path / "text").write_bytes("a,\u00e4".encode())
    (tmp_path / "newline").write_bytes("a,\u00e4\n".encode())
    sealed = encrypted("a,\u00e4".encode())
    (tmp_path / "sealed").write_bytes(sealed)
    lines = [
        line.replace("{}", str(tmp_path))
        .replace("{iv}", text(IV))
        .replace("{sealed}", text(sealed))
        for line in definitions
    ]
    options = f"driver=luks,key-secret=sec0,file.filename={qemu_image}"
    asked = [word for line in lines for word in ("--object", line)]
    # "info" reads the header alone; "map" reads the payload, and needs the key.
    try:
        run("qemu-img", "map", *asked, "--image-opts", options, "--output=json")
    except ForeignProgramError:
        assert not opens
    else:
        assert opens
    try:
        with luks.Secret(resolve(*lines)) as secret:
            luks.open(qemu_image, secret).close()
    except luks.StorageError:
        assert not opens
    else:
        assert opens


def test_the_vectors_are_all_of_qemus_table() -> None:
    assert len(CASES) == 8
