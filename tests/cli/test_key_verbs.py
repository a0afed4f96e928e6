"""`blobstore key`, `token`, `header` and `amend` as people use them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import blobstore as library
import luks
from tests.support.cli import QUICK, blobstore, fails, succeeds

ONE, TWO, THREE = b"one", b"two \0 of any bytes\n", b"three"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def keys(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("one", "two", "three")]
    for path, secret in zip(paths, (ONE, TWO, THREE), strict=True):
        path.write_bytes(secret)
    return paths


@pytest.fixture(params=["attached", "detached"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[object, ...]:
    """What names the header in every command."""
    return ("--header", tmp_path / "header") if request.param == "detached" else ()


@pytest.fixture
def image(tmp_path: Path, keys: list[Path], options: tuple[object, ...]) -> Path:
    path = tmp_path / "image"
    specs = [library.SectionSpec("a", 100, content=b"blob")]
    header = options[1] if options else None
    assert header is None or isinstance(header, Path)
    kdf = luks.Pbkdf2("sha256", 1000)
    library.create(path, specs, keys[0].read_bytes(), header=header, kdf=kdf).close()
    return path


def test_keys_are_added_changed_tested_listed_and_removed(
    image: Path, keys: list[Path], options: tuple[object, ...]
) -> None:
    one, two, three = (("--key-file", key) for key in keys)
    to_two, to_three = (("--new-key-file", key, *QUICK) for key in keys[1:])
    said = succeeds("key", "add", image, *one, *to_two, "--key-slot", 3, *options)
    assert said == b"keyslot 3\n"
    assert succeeds("key", "test", image, *two, *options) == b"keyslot 3\n"
    assert succeeds("get", image, "a", *two, *options) == b"blob"
    assert succeeds("key", "change", image, *one, *to_three, *options) == b"keyslot 0\n"
    assert fails("key", "test", image, *one, *options) == 51
    assert fails("key", "test", image, *two, "--key-slot", 0, *options) == 51
    listed = json.loads(succeeds("key", "list", image, "--json", *options))
    assert [(slot["keyslot"], slot["holds_volume_key"]) for slot in listed] == [
        (0, True),
        (3, True),
    ]
    assert listed[0]["kdf"] == {"type": "pbkdf2", "hash": "sha256", "iterations": 1000}
    text = succeeds("key", "list", image, *options).decode()
    assert "pbkdf2-sha256, 1000 iterations" in text
    assert succeeds("key", "remove", image, *two, *options) == b"keyslot 3\n"
    assert fails("key", "remove", image, "--key-slot", 0, *options) == 53
    assert fails("key", "remove", image, "--key-slot", 3, *options) == 2
    assert fails("key", "add", image, *three, *to_two, "--key-slot", 0, *options) == 2
    assert succeeds("get", image, "a", *three, *options) == b"blob"
    assert succeeds("key", "remove", image, "--key-slot", 0, "--force", *options)
    assert fails("key", "test", image, *three, *options) == 50


def test_a_volume_key_is_put_in_escrow_and_opens(
    image: Path, keys: list[Path], options: tuple[object, ...], tmp_path: Path
) -> None:
    escrow = tmp_path / "escrow"
    export = ("key", "export", image, "--key-file", keys[0], "-o", escrow, *options)
    assert fails(*export) == 53  # nobody was asked
    assert not escrow.exists()
    succeeds(*export, "--force")
    assert escrow.stat().st_mode & 0o777 == 0o600
    assert len(escrow.read_bytes()) == 64
    by_key = ("--volume-key-file", escrow, *options)
    assert succeeds("key", "test", image, *by_key) == b"volume key\n"
    assert succeeds("get", image, "a", *by_key) == b"blob"
    succeeds("put", image, "a", "-", *by_key, stdin=b"blob")
    assert b"no problems" in succeeds("verify", image, *by_key)
    copy = tmp_path / "copy"
    succeeds("backup", image, copy, *by_key)
    both = ("--other-header", options[1]) if options else ()
    assert succeeds("diff", image, copy, *by_key, *both) is not None
    assert fails("get", image, "a", *by_key, "--key-file", keys[0]) == 2
    assert fails("key", "destroy", image, *options) == 53
    succeeds("key", "destroy", image, "--force", *options)
    assert fails("get", image, "a", "--key-file", keys[0], *options) == 50
    succeeds("key", "add", image, *by_key, "--new-key-file", keys[1], *QUICK)
    assert succeeds("get", image, "a", "--key-file", keys[1], *options) == b"blob"
    escrow.write_bytes(bytes(64))
    assert fails("key", "test", image, *by_key) == 50
    assert fails("key", "test", image, *by_key, "--key-file", keys[1]) == 2


def test_a_volume_key_for_an_image_in_the_clear_is_refused(
    tmp_path: Path, keys: list[Path]
) -> None:
    image, by_key = tmp_path / "image", ("--volume-key-file", keys[0])
    succeeds("create", image, "--section", "a=10", "--no-encryption")
    assert fails("ls", image, *by_key) == 53
    assert succeeds("ls", image, *by_key, "--allow-unprotected")


def test_tokens_are_listed_added_assigned_exported_and_removed(
    image: Path, keys: list[Path], options: tuple[object, ...]
) -> None:
    add = ("key", "add", image, "--key-file", keys[0], "--new-key-file", keys[1], *QUICK)
    succeeds(*add, *options)
    said = succeeds(
        *("token", "add", image, "--key-description", "a key", "--key-slot", 1, *options)
    )
    assert said == b"token 0\n"
    body = {"type": "systemd-tpm2", "keyslots": ["0"], "tpm2-pcrs": [7], "x": {"é": None}}
    imported = ("token", "import", image, "-", "--token-id", 5, *options)
    assert succeeds(*imported, stdin=json.dumps(body).encode()) == b"token 5\n"
    assert fails(*imported, stdin=json.dumps(body).encode()) == 2
    listed = json.loads(succeeds("token", "list", image, "--json", *options))
    assert [(t["token"], t["name"], t["keyslots"]) for t in listed] == [
        (0, "kernel keyring: a key", [1]),
        (5, "TPM 2.0, enrolled by systemd", [0]),
    ]
    assert b"systemd-tpm2" in succeeds("token", "list", image, *options)
    assert b"a key" in succeeds("key", "list", image, *options)
    succeeds("token", "assign", image, 5, "--key-slot", 1, *options)
    succeeds("token", "unassign", image, 5, "--key-slot", 0, *options)
    exported = json.loads(succeeds("token", "export", image, 5, *options))
    assert exported == {**body, "keyslots": ["1"]}
    done = blobstore("key", "remove", image, "--key-slot", 1, *options)
    assert (done.returncode, done.stderr) == (0, b"blobstore: token 0, 5 has no keyslot any more\n")
    succeeds("token", "remove", image, 0, *options)
    for arguments in (("remove",), ("export",), ("assign", "--key-slot", 1)):
        verb, *more = arguments
        assert fails("token", verb, image, 0, *more, *options) == 2
    assert fails(*imported[:3], "-", *options, stdin=b"[]") == 30
    wrong = b'{"type": "luks2-keyring", "keyslots": []}'
    assert fails(*imported[:3], "-", *options, stdin=wrong) == 30
    assert fails("key", "test", image, "--token", 5, *options) == 40


def test_tokens_go_with_their_keyslot_when_asked(
    image: Path, keys: list[Path], options: tuple[object, ...]
) -> None:
    add = ("key", "add", image, "--key-file", keys[0], "--new-key-file", keys[1], *QUICK)
    succeeds(*add, *options)
    for slots in (["1"], ["0", "1"], []):
        body = json.dumps({"type": "acme", "keyslots": slots}).encode()
        succeeds("token", "import", image, "-", *options, stdin=body)
    succeeds("key", "remove", image, "--key-slot", 1, "--with-tokens", *options)
    listed = json.loads(succeeds("token", "list", image, "--json", *options))
    assert [(token["token"], token["keyslots"]) for token in listed] == [(1, [0]), (2, [])]


def test_a_header_is_dumped_backed_up_and_restored(
    image: Path, keys: list[Path], options: tuple[object, ...], tmp_path: Path
) -> None:
    described = json.loads(succeeds("header", "dump", image, "--json", *options))
    assert (described["version"], described["cipher"]) == (2, "aes-xts-plain64")
    assert described["metadata"]["keyslots"].keys() == {"0"}
    assert described["keyslots"]["0"]["kdf"]["type"] == "pbkdf2"
    text = succeeds("header", "dump", image, *options).decode()
    assert described["uuid"] in text
    assert "keyslot 0:" in text
    backup = tmp_path / "backup"
    succeeds("header", "backup", image, backup, *options)
    assert fails("header", "backup", image, backup, *options) == 72
    change = ("key", "change", image, "--key-file", keys[0], "--new-key-file", keys[1])
    succeeds(*change, *QUICK, *options)
    succeeds("header", "restore", image, backup, *options)
    assert succeeds("get", image, "a", "--key-file", keys[0], *options) == b"blob"
    assert fails("key", "test", image, "--key-file", keys[1], *options) == 51
    other = tmp_path / "other"
    create = ("create", other, "--key-file", keys[2], *QUICK)
    succeeds(*create)
    assert fails("header", "restore", other, backup) == 58
    assert succeeds("key", "test", other, "--key-file", keys[2])


def test_no_file_is_made_in_the_place_of_the_image(
    image: Path, keys: list[Path], options: tuple[object, ...], tmp_path: Path
) -> None:
    """Even with --force: it would be lost."""
    link = tmp_path / "link"
    link.hardlink_to(image)
    places = [image, link, *(option for option in options if isinstance(option, Path))]
    before = [place.read_bytes() for place in places]
    for place in places:
        assert fails("header", "backup", image, place, "--force", *options) == 2
        export = ("key", "export", image, "-o", place, "--force", "--key-file", keys[0])
        assert fails(*export, *options) == 2
        if not options:
            assert fails("header", "detach", image, place, "--force") == 2
            with pytest.raises(ValueError, match="the image itself"):
                luks.backup_header(image, place, overwrite=True)
            with pytest.raises(ValueError, match="the image itself"):
                luks.detach_header(image, place, overwrite=True)
    assert [place.read_bytes() for place in places] == before


@pytest.mark.parametrize("options", ["attached"], indirect=True)
def test_a_header_is_detached_and_attached(image: Path, keys: list[Path], tmp_path: Path) -> None:
    header, key = tmp_path / "moved", ("--key-file", keys[0])
    succeeds("header", "detach", image, header)
    assert fails("get", image, "a", *key) == 32  # nothing that is known
    assert succeeds("get", image, "a", "--header", header, *key) == b"blob"
    succeeds("header", "attach", image, header)
    assert fails("header", "attach", image, header) == 36
    assert succeeds("get", image, "a", *key) == b"blob"
    assert fails("header", "detach", image, header) == 72
    clear = tmp_path / "clear"
    library.create(clear, {"a": 100}, encrypted=False).close()
    before = clear.read_bytes()
    assert fails("header", "attach", clear, header) == 32
    assert clear.read_bytes() == before


def test_amend_takes_what_qemu_takes(
    image: Path, keys: list[Path], options: tuple[object, ...]
) -> None:
    objects = [
        part
        for number, key in enumerate((keys[0], keys[2]))
        for part in ("--object", f"secret,id=s{number},file={key}")
    ]

    def amend(body: object, *more: object) -> tuple[object, ...]:
        text = body if isinstance(body, str) else json.dumps(body)
        return ("amend", image, "--json", text, *objects, *more, *options)

    active = {"state": "active", "new-secret": "s1", "secret": "s0", "iter-time": 1}
    assert succeeds(*amend({**active, "keyslot": 4})) == b"keyslot 4 is active\n"
    assert succeeds(*amend({**active, "keyslot": 4})) == b"nothing was to be done\n"
    assert fails(*amend({**active, "keyslot": 4}, "--strict-qemu")) == 59
    assert fails(*amend({**active, "keyslot": 0})) == 59
    around = {"job-id": "j", "node-name": "n", "options": {"driver": "luks", **active}}
    assert succeeds(*amend(around)) == b"keyslot 1 is active\n"
    assert fails(*amend({"driver": "qcow2", "encrypt": {**active, "keyslot": 0}})) == 59
    inactive = {"state": "inactive", "old-secret": "s1"}
    assert succeeds(*amend(inactive)) == b"keyslot 1 is inactive\nkeyslot 4 is inactive\n"
    assert fails(*amend(inactive)) == 51
    assert fails(*amend({"state": "inactive", "keyslot": 0})) == 53
    by_option = {key: value for key, value in active.items() if key != "secret"}
    assert succeeds(*amend(by_option, "--key-secret", "s0")) == b"keyslot 1 is active\n"
    for wrong in (
        *("", "{", "[]", "{}", '{"state": "active", "state": "active"}'),
        {"state": "inactive"},
        {**active, "old-secret": "s0"},
        {"state": "inactive", "keyslot": "0"},
        {"state": "inactive", "keyslot": True},
        {"state": "inactive", "keyslot": 0, "color": "red"},
        {"driver": "vmdk", "state": "inactive", "keyslot": 0},
        {"driver": "qcow2", "state": "inactive", "keyslot": 0},
        {"driver": "qcow2", "encrypt": "luks"},
        {"driver": "qcow2", "encrypt": {}},
        {"driver": "qcow2", "encrypt": {"format": "aes", "state": "inactive", "keyslot": 0}},
        {"driver": "qcow2", "encrypt": {"driver": "luks", "state": "inactive", "keyslot": 0}},
        {"driver": "qcow2", "size": 1, "encrypt": {"state": "inactive", "keyslot": 0}},
        {"options": {"state": "inactive", "keyslot": 0}, "force": 1},
    ):
        assert fails(*amend(wrong)) == 2, wrong
    assert fails(*amend({**active, "new-secret": "s9"})) == 55
    forced = {"options": {"state": "inactive", "keyslot": 0}, "force": True}
    assert succeeds(*amend({"state": "inactive", "keyslot": 1}))
    assert succeeds(*amend(forced)) == b"keyslot 0 is inactive\n"


def test_a_luks1_volume_keeps_its_one_hash(tmp_path: Path, keys: list[Path]) -> None:
    image, one = tmp_path / "image", ("--key-file", keys[0])
    kdf = luks.Pbkdf2("sha512", 1000)
    luks.format(image, ONE, version=1, hash_name="sha512", size=1 << 20, kdf=kdf).close()
    assert succeeds("key", "change", image, *one, "--new-key-file", keys[1], *QUICK)
    assert fails("token", "add", image, "--key-description", "k", "--key-slot", 1) == 2
    assert json.loads(succeeds("header", "dump", image, "--json"))["version"] == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_that_a_key_derivation_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from blobstore.cli import output

    monkeypatch.setattr(output, "_PROGRESS_AFTER", 0.01)
    for kind, expected in ((Terminal, r"deriving \.\.\.\.+\n"), (io.StringIO, "")):
        stderr = kind()
        monkeypatch.setattr(sys, "stderr", stderr)
        with output.waiting("deriving"):
            time.sleep(0.2)
        assert re.fullmatch(expected, stderr.getvalue())


_STORE = """
import sys, blobstore
with blobstore.open(sys.argv[1], sys.argv[2].encode(), header=sys.argv[3] or None) as store:
    for number, line in enumerate(sys.stdin):
        store.put("a", b"put %d" % number)
        print(number, flush=True)
"""


def test_l91_keys_change_while_another_process_uses_the_store(
    image: Path, keys: list[Path], options: tuple[object, ...], tmp_path: Path
) -> None:
    """The image's lock keeps others from the payload, and not from the keys."""
    header = str(options[1]) if options else ""
    process = subprocess.Popen(
        [sys.executable, "-c", _STORE, str(image), ONE.decode(), header],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert process.stdin
    assert process.stdout

    def put() -> None:
        assert process.stdin
        assert process.stdout
        print(file=process.stdin, flush=True)
        assert process.stdout.readline()

    with process:
        put()
        one, two = ("--key-file", keys[0]), ("--key-file", keys[1])
        if not options:
            assert fails("put", image, "a", "-", *one) == 23  # it is in use
        succeeds("key", "add", image, *one, "--new-key-file", keys[1], *QUICK, *options)
        put()
        backup = tmp_path / "backup"
        succeeds("header", "backup", image, backup, *options)
        succeeds("key", "change", image, *one, "--new-key-file", keys[2], *QUICK, *options)
        succeeds("token", "add", image, "--key-description", "k", "--key-slot", 1, *options)
        put()
        succeeds("key", "remove", image, "--key-slot", 0, *options)
        succeeds("header", "restore", image, backup, *options)
        succeeds("key", "remove", image, *one, *options)
        put()
        process.stdin.close()
        assert process.wait(timeout=30) == 0
    assert succeeds("get", image, "a", *two, *options) == b"put 3"
    assert fails("get", image, "a", *one, *options) == 51
    assert b"no problems" in succeeds("verify", image, *two, *options)
