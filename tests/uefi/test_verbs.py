"""`blobstore show` and `blobstore edit` of UEFI variables."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
from tests.support.cli import blobstore as run
from tests.support.cli import succeeds
from tests.support.owners import own_runtime, owner_thread
from tests.uefi.samples import OTHER, SIZE, flash, record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = flash(
    record("Timeout", b"\5\0"),
    record("odd\x1b\n", b"\0" * 100, guid=OTHER),
    record("PlatformLang", b"en\0"),
)
TORN = flash(record("Timeout", b"\5\0"), b"\xaa\x55" + b"\xff" * 58)
NAME = f"odd\x1b\n-{OTHER}"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with blobstore.create(path, {"other": 100}, encrypted=False, free=1 << 20) as store:
        store.put("other", b"other")
        store.register("v", SIZE, "window")
        store.put("v", CONTENT)
    return path


def shown(*arguments: object) -> dict[str, Any]:
    return tomllib.loads(succeeds("show", *arguments).decode())


def test_show_lists_variables_and_prints_one(image: Path, tmp_path: Path) -> None:
    said = succeeds("show", image, "v")
    assert b"\x1b" not in said
    listed = shown(image, "v")
    assert listed == {"Timeout": 5, NAME: "0" * 64 + "… (100 bytes)", "PlatformLang": "en"}
    assert shown(image, "v", "--variable", NAME) == {NAME: "0" * 200}
    (tmp_path / "bare").write_bytes(CONTENT)
    assert shown(tmp_path / "bare", "--type", "ovmf-vars") == listed
    document = json.loads(succeeds("show", image, "v", "--json", "--variable", "Timeout"))
    assert document["variables"] == [
        {
            "name": "Timeout",
            "guid": "8be4df61-93ca-11d2-aa0d-00e098032b8c",
            "attributes": ["non-volatile", "boot-service", "runtime"],
            "kind": "number",
            "value": 5,
            "data": "0500",
        }
    ]
    assert (document["problems"], document["capacity"]) == ([], 0xDFB8 - 28)
    assert len(json.loads(succeeds("show", image, "v", "--json"))["variables"]) == 3


def test_edit_sets_and_deletes_in_one_commit(image: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"from a file")
    new = f"new-{OTHER}"
    succeeds("edit", image, "v", "Timeout=7", f"{new}=@{tmp_path / 'data'}", "--delete", NAME)
    data = b"from a file".hex()
    assert shown(image, "v") == {"Timeout": 7, "PlatformLang": "en", new: data}
    done = run("edit", image, "v", "Timeout=8", "--delete", "nothing")
    assert done.returncode == 37
    assert shown(image, "v")["Timeout"] == 7


def test_a_torn_flash_is_reported_and_repaired(image: Path, tmp_path: Path) -> None:
    with blobstore.open(image) as store:
        store.put("v", TORN)
    done = run("show", image, "v")
    assert (done.returncode, done.stdout) == (30, b"Timeout = 5\n")
    assert b"not written to its end at byte 180 [F32]" in done.stderr
    done = run("edit", image, "v", "--repair")
    assert done.returncode == 0
    assert done.stderr.startswith(b"blobstore: repaired: a variable whose header")
    assert shown(image, "v") == {"Timeout": 5}
    (tmp_path / "torn").write_bytes(TORN)
    bare = ("--type", "ovmf-vars", "-o", tmp_path / "whole")
    assert run("edit", tmp_path / "torn", *bare, "--repair").returncode == 0
    assert run("edit", tmp_path / "torn", *bare, "--repair").returncode == 72
    assert run("edit", tmp_path / "torn", *bare, "--repair", "--force").returncode == 0
    assert shown(tmp_path / "whole", "--type", "ovmf-vars") == {"Timeout": 5}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("edit", "IMAGE"), b"name a section"),
        (("edit", "IMAGE", "v"), b"say what to change"),
        (("edit", "IMAGE", "v", "Timeout"), b"NAME=VALUE"),
        (("edit", "IMAGE", "other", "--delete", "x"), b"does not hold UEFI variables"),
        (("edit", "IMAGE", "-o", "new", "x=1"), b"--output is for a bare file"),
        (("edit", "IMAGE", "v", "--enrol", f"Timeout=sha256:{'0' * 64}"), b"does not hold cert"),
        (("edit", "IMAGE", "v", "--owner", "x", "A=1"), b"badly formed"),
        (("edit", "IMAGE", "v", "--force", "A=1"), b"--force goes with --output"),
        (("show", "IMAGE"), b"--type"),
    ],
)
def test_wrong_usage_is_said(image: Path, arguments: tuple[str, ...], words: bytes) -> None:
    done = run(*(image if part == "IMAGE" else part for part in arguments))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield from own_runtime(tmp_path, monkeypatch)


@pytest.mark.usefixtures("runtime")
def test_the_owner_of_an_image_is_asked(image: Path, tmp_path: Path) -> None:
    with (
        blobstore.open(image, direct=True) as store,
        owner_thread(store, image, tmp_path / "s"),
        blobstore.open(image) as client,
    ):
        assert not isinstance(client, blobstore.Store)
        blobstore.edit_variables(client, "v", lambda v: v.set("Timeout", "9"))
        assert blobstore.read_variables(store, "v")["Timeout"].data == b"\x09\0"
        with store.window("v"), pytest.raises((blobstore.StorageError, ValueError)) as raised:
            blobstore.edit_variables(client, "v", lambda v: v.set("Timeout", "8"))
        assert "open window" in str(raised.value)
        assert blobstore.read_variables(client, "v")["Timeout"].data == b"\x09\0"
