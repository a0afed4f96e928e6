"""`blobstore reencrypt`, `encrypt` and `decrypt`, handed over to cryptsetup and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cli import QUICK, blobstore, succeeds
from tests.support.foreign import run

if TYPE_CHECKING:
    from pathlib import Path

STEPS = ("--hotzone-size", "256K")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(b"pass")
    return path


def made(directory: Path, key: Path | None, *options: object) -> Path:
    image = directory / "image"
    how = ("--no-encryption",) if key is None else ("--key-file", key, *QUICK)
    succeeds("create", image, "--section", "a=100", "--size", "6M", *how, *options)
    with_key = () if key is None else ("--key-file", key)
    succeeds("put", image, "a", "-", *with_key, stdin=b"a blob")
    return image


def state(image: Path, *options: object) -> Any:
    return json.loads(succeeds("reencrypt", image, "--status", "--json", *options))


def test_a_new_cipher_with_lines_of_json(tmp_path: Path, key: Path) -> None:
    image = made(tmp_path, key)
    out = succeeds(
        *("reencrypt", image, "--key-file", key, *QUICK, *STEPS, "--json"),
        *("--cipher", "aes-cbc-essiv:sha256", "--key-size", 256, "--sector-size", 512),
        *("--hash", "sha512", "--resilience", "journal", "--workers", 2),
    )
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["state"] for line in lines[-1:]] == ["finished"]
    assert {line["mode"] for line in lines} == {"reencrypt"}
    assert lines[-1]["position"] == lines[-1]["size"]
    assert (lines[-1]["new_cipher"], lines[-1]["new_sector_size"]) == ("aes-cbc-essiv:sha256", 512)
    assert lines[-1]["resilience"] == "journal"
    assert succeeds("get", image, "a", "--key-file", key) == b"a blob"
    succeeds("verify", image, "--key-file", key)
    assert b"aes-cbc-essiv:sha256" in run("cryptsetup", "luksDump", image)
    assert state(image) == {"state": "none"}
    assert succeeds("reencrypt", image, "--status") == b"no re-encryption is in progress\n"


def test_begun_here_finished_by_cryptsetup_and_the_other_way_round(
    tmp_path: Path, key: Path
) -> None:
    image = made(tmp_path, key)
    succeeds("reencrypt", image, "--key-file", key, *QUICK, "--init-only")
    begun = state(image)
    assert (begun["state"], begun["mode"], begun["position"]) == ("stopped", "reencrypt", 0)
    assert b"reencrypt, stopped" in succeeds("reencrypt", image, "--status")
    assert succeeds("get", image, "a", "--key-file", key) == b"a blob"
    offline = ("--batch-mode", "--force-offline-reencrypt", "--key-file", key)
    run("cryptsetup", "reencrypt", "--resume-only", *offline, image)
    assert state(image) == {"state": "none"}
    assert succeeds("get", image, "a", "--key-file", key) == b"a blob"
    quick = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", 1000)
    run("cryptsetup", "reencrypt", "--init-only", *quick, *offline, image)
    assert state(image)["state"] == "stopped"
    succeeds("reencrypt", image, "--resume", "--key-file", key, *STEPS)
    assert state(image) == {"state": "none"}
    assert succeeds("get", image, "a", "--key-file", key) == b"a blob"
    succeeds("verify", image, "--key-file", key)


@pytest.mark.parametrize("detached", [False, True], ids=["attached", "detached"])
def test_encrypted_and_decrypted(tmp_path: Path, key: Path, detached: bool) -> None:
    image, header = made(tmp_path, None), tmp_path / "header"
    apart = ("--header", header) if detached else ()
    succeeds("encrypt", image, *apart, "--key-file", key, *QUICK, *STEPS, "--label", "a label")
    assert succeeds("get", image, "a", *apart, "--key-file", key) == b"a blob"
    assert b"a label" in run("cryptsetup", "luksDump", header if detached else image)
    info = json.loads(succeeds("info", image, *apart, "--key-file", key, "--json"))
    assert info["container"]["encrypted"] is True
    succeeds("decrypt", image, "--header", header, "--key-file", key, *STEPS)
    assert succeeds("get", image, "a") == b"a blob"
    assert json.loads(succeeds("info", image, "--json"))["container"]["encrypted"] is False
    succeeds("verify", image)


def test_a_header_that_an_earlier_attempt_left_is_that_of_the_image(
    tmp_path: Path, key: Path
) -> None:
    """Otherwise the payload would stay after the room of a header that is not used any more."""
    image, header = made(tmp_path, key), tmp_path / "header"
    succeeds("header", "backup", image, header)
    succeeds("decrypt", image, "--header", header, "--key-file", key, *STEPS)
    assert succeeds("get", image, "a") == b"a blob"


def test_taken_back(tmp_path: Path, key: Path) -> None:
    image = made(tmp_path, key)
    succeeds("reencrypt", image, "--key-file", key, *QUICK, "--init-only")
    succeeds("reencrypt", image, "--abort", "--key-file", key)
    assert state(image) == {"state": "none"}
    assert succeeds("get", image, "a", "--key-file", key) == b"a blob"


def test_other_passphrases_are_given_or_given_up(tmp_path: Path, key: Path) -> None:
    image, other = made(tmp_path, key), tmp_path / "other"
    other.write_bytes(b"other")
    succeeds("key", "add", image, "--key-file", key, "--new-key-file", other, *QUICK)
    done = blobstore("reencrypt", image, "--key-file", key, *QUICK)
    assert done.returncode == 53, done.stderr
    succeeds("reencrypt", image, "--key-file", key, "--other-key-file", other, *QUICK)
    assert succeeds("get", image, "a", "--key-file", other) == b"a blob"
    succeeds("reencrypt", image, "--key-file", key, "--drop-keyslots", *QUICK)
    assert blobstore("get", image, "a", "--key-file", other).returncode == 51
    assert succeeds("get", image, "a", "--key-file", key) == b"a blob"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--resume", "--status"), 2),
        (("--abort", "--init-only"), 2),
        (("--stop",), 2),
        (("--resume",), 44),
        (("--abort",), 44),
        (("--cipher", "nonsense"), 40),
        (("--sector-size", "777"), 2),
        (("--hotzone-size", "1"), 2),
    ],
)
def test_what_cannot_be_done_has_its_exit_code(
    tmp_path: Path, key: Path, options: tuple[str, ...], code: int
) -> None:
    image = made(tmp_path, key)
    before = image.read_bytes()
    done = blobstore("reencrypt", image, "--key-file", key, *options)
    assert done.returncode == code, done.stderr
    assert image.read_bytes() == before


def test_a_wrong_passphrase_begins_nothing(tmp_path: Path, key: Path) -> None:
    image, other = made(tmp_path, key), tmp_path / "other"
    other.write_bytes(b"wrong")
    for verb in ("reencrypt", "decrypt"):
        more = ("--header", tmp_path / "header") if verb == "decrypt" else ()
        assert blobstore(verb, image, *more, "--key-file", other).returncode == 51
    assert blobstore("encrypt", image, "--key-file", key).returncode == 36
    assert not (tmp_path / "header").exists()
    assert state(image) == {"state": "none"}
