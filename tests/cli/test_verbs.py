"""The verbs as people use them: what they print, write, and leave behind."""

from __future__ import annotations

import json
import os
import pty
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import blobstore as library
from tests.support.cli import QUICK, blobstore, fails, succeeds

MACHINE = Path(__file__).resolve().parents[2] / "examples" / "machine"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(b"a key \0 of any bytes\n")
    return path


@pytest.fixture
def image(tmp_path: Path, key: Path) -> Path:
    path = tmp_path / "machine.img"
    succeeds("pack", MACHINE / "manifest.toml", "-o", path, "--key-file", key, *QUICK)
    return path


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_pack_ls_get_put_verify(tmp_path: Path, image: Path, key: Path) -> None:
    with_key = ("--key-file", key)
    listed = succeeds("ls", image, *with_key).decode().splitlines()
    assert listed[0].split()[:2] == ["SIZE", "WORST"]
    assert [line.split()[-1] for line in listed[1:]] == [
        "tpm-permanent-state",
        "tpm-volatile-state",
        "adapter-vpd",
        "uboot-environment",
    ]
    state = (MACHINE / "tpm2-permall.bin").read_bytes()
    assert succeeds("get", image, "tpm-permanent-state", *with_key) == state
    assert succeeds("put", image, "tpm-permanent-state", "-", *with_key, stdin=b"new") == b""
    assert succeeds("get", image, "tpm-permanent-state", "-o", "-", *with_key) == b"new"
    (tmp_path / "file").write_bytes(b"newer")
    succeeds("put", image, "tpm-permanent-state", tmp_path / "file", *with_key)
    out = tmp_path / "out"
    assert succeeds("get", image, "tpm-permanent-state", "-o", out, *with_key) == b""
    assert out.read_bytes() == b"newer"
    assert out.stat().st_mode & 0o777 == 0o600
    assert b"no problems" in succeeds("verify", image, *with_key)
    assert files(tmp_path) == {"key", "machine.img", "file", "out"}


def test_the_packed_image_is_as_large_as_its_worst_cases_need(image: Path, key: Path) -> None:
    described = json.loads(succeeds("info", image, "--json", "--key-file", key))
    blocks = sum(2 * -(-(512 + size) // 4096) for size in (256 << 10, 65 << 10, 32 << 10, 8 << 10))
    assert described["container"]["size"] == (2 + blocks) * 4096
    assert described["container"]["free"] == 0
    assert image.stat().st_size == (2 << 20) + (2 + blocks) * 4096
    assert described["luks"]["version"] == 2


@pytest.mark.parametrize("header", [None, "header"])
@pytest.mark.parametrize("version", ["1", "2"])
def test_info_says_where_each_byte_goes(
    tmp_path: Path, key: Path, version: str, header: str | None
) -> None:
    path = tmp_path / "image"
    options: tuple[object, ...] = ("--key-file", key)
    if header:
        options += ("--header", tmp_path / header)
    succeeds("create", path, "--section", "a=1000", "--luks", version, *options, *QUICK)
    described = json.loads(succeeds("info", path, "--json", *options))
    _contiguous(described["regions"], path.stat().st_size)
    assert any(region["section"] == "a" for region in described["regions"])
    if header:
        _contiguous(described["header_regions"], (tmp_path / header).stat().st_size)
    text = succeeds("info", path, *options).decode()
    assert "container header, copy 0" in text
    assert f"LUKS{version} header" in text


def _contiguous(regions: list[dict[str, Any]], size: int) -> None:
    position = 0
    for region in regions:
        assert region["offset"] == position, region
        position += region["size"]
    assert position == size


def test_ls_as_json(image: Path, key: Path) -> None:
    sections = json.loads(succeeds("ls", image, "--json", "--key-file", key))
    assert [section["name"] for section in sections][:2] == [
        "tpm-permanent-state",
        "tpm-volatile-state",
    ]
    assert sections[0]["max_size"] == 256 << 10
    assert sections[1]["size"] is None
    assert sections[2]["type"] == "pci-vpd"


def test_verify_as_json(image: Path, key: Path) -> None:
    report = json.loads(succeeds("verify", image, "--json", "--key-file", key))
    assert (report["ok"], report["sections"], report["problems"]) == (True, 4, [])
    assert report["clean"] is True
    assert "closed" not in report


def test_unpack_then_pack_gives_the_same_sections(tmp_path: Path, image: Path, key: Path) -> None:
    directory = tmp_path / "unpacked"
    succeeds("unpack", image, "-o", directory, "--key-file", key)
    # The VPD and the environment have codecs, and are in the manifest as fields.
    assert files(directory) == {"manifest.toml", "tpm-permanent-state.bin"}
    again = tmp_path / "again.img"
    succeeds("pack", directory / "manifest.toml", "-o", again, "--key-file", key, *QUICK)
    assert again.stat().st_size == image.stat().st_size
    with (
        library.open(image, key.read_bytes(), read_only=True) as one,
        library.open(again, key.read_bytes(), read_only=True) as other,
    ):
        assert one.sections() == other.sections()
        for section in one.sections():
            if section.size is not None:
                assert one.get(section.name) == other.get(section.name)


def test_unpack_into_a_directory_that_is_not_empty_needs_force(
    tmp_path: Path, image: Path, key: Path
) -> None:
    directory = tmp_path / "unpacked"
    directory.mkdir()
    (directory / "mine").write_text("mine")
    assert blobstore("unpack", image, "-o", directory, "--key-file", key).returncode == 69
    assert files(directory) == {"mine"}
    succeeds("unpack", image, "-o", directory, "--key-file", key, "--force")
    assert (directory / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", ".hidden", "a/b", "A", "sp ace", "é", "manifest.toml", "x" * 200]
)
def test_unpack_never_writes_outside_its_directory(tmp_path: Path, name: str) -> None:
    image = tmp_path / "image"
    specs = [library.SectionSpec(n, 10, content=n.encode()[:10]) for n in (name, "a", "manifest")]
    library.create(image, specs, encrypted=False).close()
    directory = tmp_path / "deep" / "unpacked"
    succeeds("unpack", image, "-o", directory)
    assert files(tmp_path) == {"image", "deep"}
    assert files(tmp_path / "deep") == {"unpacked"}
    assert len(files(directory)) == 4
    manifest = tomllib.loads((directory / "manifest.toml").read_text())
    for section in manifest["section"]:
        path = directory / section["file"]
        assert path.read_bytes() == section["name"].encode()[:10]
        assert path.name == section["file"]


def test_create_makes_room_for_later_sections(tmp_path: Path, key: Path) -> None:
    path = tmp_path / "image"
    succeeds(
        *("create", path, "--section", "a=4KiB", "--section", "b=c=1M", "--key-file", key, *QUICK)
    )
    with library.open(path, key.read_bytes()) as store:
        assert [(s.name, s.max_size) for s in store.sections()] == [("a", 4096), ("b=c", 1 << 20)]
        store.register("later", 1 << 20)
    assert path.stat().st_blocks * 512 < 7 << 20  # what is free is holes


def test_create_of_a_given_size(tmp_path: Path, key: Path) -> None:
    path = tmp_path / "image"
    succeeds("create", path, "--size", "5MiB", "--key-file", key, *QUICK)
    assert path.stat().st_size == 5 << 20
    small = blobstore("create", tmp_path / "no", "--size", "1MiB", "--key-file", key, *QUICK)
    assert small.returncode == 21
    tight = blobstore(
        *("create", tmp_path / "no", "--size", "3MiB", "--section", "a=1M", "--key-file", key),
        *QUICK,
    )
    assert tight.returncode == 64
    assert files(tmp_path) == {"key", "image"}


def test_an_image_in_the_clear_has_to_be_asked_for(tmp_path: Path, key: Path) -> None:
    path = tmp_path / "image"
    succeeds("create", path, "--section", "a=10", "--no-encryption")
    succeeds("put", path, "a", "-", stdin=b"clear")
    assert b"clear" in path.read_bytes()
    assert succeeds("get", path, "a") == b"clear"
    # A secret shows that the user takes it for encrypted.
    refused = blobstore("get", path, "a", "--key-file", key)
    assert (refused.returncode, refused.stdout) == (53, b"")
    assert succeeds("get", path, "a", "--key-file", key, "--allow-unprotected") == b"clear"


def test_a_manifest_may_ask_for_no_encryption(tmp_path: Path, key: Path) -> None:
    manifest = tmp_path / "manifest.toml"
    manifest.write_text('[image]\nluks = false\n[[section]]\nname = "a"\ntext = "clear"\n')
    path = tmp_path / "image"
    assert blobstore("pack", manifest, "-o", path, "--key-file", key).returncode == 2
    succeeds("pack", manifest, "-o", path)
    assert succeeds("get", path, "a") == b"clear"
    assert path.stat().st_size == 4 * 4096


def test_the_key_comes_from_a_descriptor(tmp_path: Path, image: Path, key: Path) -> None:
    del tmp_path
    with key.open("rb") as file:
        done = blobstore("ls", image, "--key-fd", file.fileno(), pass_fds=[file.fileno()])
    assert done.returncode == 0
    both = blobstore("ls", image, "--key-fd", "0", "--key-file", key)
    assert both.returncode == 2


def test_a_key_file_is_taken_as_it_is(tmp_path: Path, image: Path, key: Path) -> None:
    stripped = tmp_path / "stripped"
    stripped.write_bytes(key.read_bytes().rstrip(b"\n"))
    assert blobstore("ls", image, "--key-file", stripped).returncode == 51


def test_without_a_terminal_a_passphrase_cannot_be_asked_for(image: Path) -> None:
    done = blobstore_without_terminal("ls", image)
    assert done == 52


def blobstore_without_terminal(*arguments: object) -> int:
    import subprocess
    import sys

    return subprocess.run(
        [sys.executable, "-m", "blobstore", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        check=False,
    ).returncode


def test_the_passphrase_is_asked_for_twice_and_not_echoed(tmp_path: Path) -> None:
    path = tmp_path / "image"
    asked = _at_terminal(
        ["create", str(path), "--section", "a=10", *QUICK], [b"top secret\n", b"top secret\n"]
    )
    assert asked.count(b"assphrase") >= 2
    assert b"top secret" not in asked
    with library.open(path, b"top secret") as store:
        store.put("a", b"x")
    assert b"NAME" in _at_terminal(["ls", str(path)], [b"top secret\n"])
    wrong = [b"top secrets\n", b"\n"]
    assert b"NAME" in _at_terminal(["ls", str(path)], [*wrong, b"top secret\n"])
    shown = _at_terminal(["ls", str(path)], [*wrong, b"TOP SECRET\n"], code=51)
    assert shown.count(b"no keyslot opens with that") == 2
    shown = _at_terminal(["key", "add", str(path), *QUICK], [*wrong, b"?\n"], code=51)
    assert b"New passphrase" not in shown
    new = [b"new\n"] * 2
    for verb, old in (("add", b"top secret\n"), ("change", b"top secret\n")):
        _at_terminal(["key", verb, str(path), *QUICK], [wrong[0], old, *new])
    _at_terminal(["key", "remove", str(path)], [wrong[0], new[0]])
    assert b"NAME" in _at_terminal(["ls", str(path)], new[:1])
    _at_terminal(["create", str(tmp_path / "other"), *QUICK], [b"one\n", b"two\n"], code=52)
    assert not (tmp_path / "other").exists()


def _at_terminal(arguments: list[str], answers: list[bytes], code: int = 0) -> bytes:
    """Run the command at a terminal of its own and answer each prompt."""
    import sys

    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "blobstore", *arguments])
    output = b""
    for answer in answers:
        while not output.endswith(b": "):
            output += os.read(terminal, 1000)
        os.write(terminal, answer)
        output += b"\n"
    try:
        while chunk := os.read(terminal, 1000):
            output += chunk
    except OSError:
        pass  # the other end is closed
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code, output
    return output


def test_a_blob_does_not_go_to_a_terminal_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "image"
    library.create(path, [library.SectionSpec("a", 10, content=b"binary")], encrypted=False).close()
    assert b"binary\r\n" not in _at_terminal(["get", str(path), "a"], [], code=2)
    assert b"binary" in _at_terminal(["get", str(path), "a", "-o", "-"], [])


def test_an_output_file_is_not_overwritten_without_force(
    tmp_path: Path, image: Path, key: Path
) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    arguments = ("get", image, "adapter-vpd", "-o", out, "--key-file", key)
    assert blobstore(*arguments).returncode == 72
    assert out.read_text() == "mine"
    succeeds(*arguments, "--force")
    assert out.read_bytes() == (MACHINE / "pci-vpd.bin").read_bytes()


def test_a_failed_get_leaves_no_output(tmp_path: Path, image: Path, key: Path) -> None:
    out = tmp_path / "out"
    for name, code in (("unknown", 61), ("tpm-volatile-state", 62)):
        done = blobstore("get", image, name, "-o", out, "--key-file", key)
        assert (done.returncode, done.stdout) == (code, b"")
    assert not out.exists()


def test_a_rolled_back_commit_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "image"
    library.create(path, [library.SectionSpec("a", 5000, content=b"old")], encrypted=False).close()
    before = path.read_bytes()
    store = library.open(path)
    store.put("a", b"new" * 1000)
    torn = bytearray(before)
    after = path.read_bytes()
    sectors = (slice(at, at + 512) for at in range(0, len(before), 512))
    changed = next(sector for sector in sectors if before[sector] != after[sector])
    torn[changed] = after[changed]
    store.close()
    path.write_bytes(torn)
    done = blobstore("put", path, "a", "-", stdin=b"newer")
    assert done.returncode == 0
    assert b"rolling back generation 2" in done.stderr
    assert succeeds("get", path, "a") == b"newer"


def test_help_and_version_cost_no_verb() -> None:
    assert succeeds("--version").startswith(b"blobstore, version ")
    text = succeeds("--help").decode()
    for word in ("create", "pack", "unpack", "ls", "info", "get", "put", "verify", "Exit codes"):
        assert word in text
    for verb in ("create", "pack", "unpack", "ls", "info", "get", "put", "verify"):
        assert b"Usage: " in succeeds(verb, "--help")
    assert blobstore("nonsense").returncode == 2


def test_restore_mv_rm_resize_grow(image: Path, key: Path, tmp_path: Path) -> None:
    with_key = ("--key-file", key)
    new = tmp_path / "new"
    new.write_bytes(b"new environment")
    old = succeeds("get", image, "uboot-environment", *with_key)
    succeeds("put", image, "uboot-environment", new, *with_key)
    assert succeeds("get", image, "uboot-environment", "--previous", *with_key) == old
    succeeds("restore", image, "uboot-environment", *with_key)
    assert succeeds("get", image, "uboot-environment", *with_key) == old
    before = image.stat().st_size
    succeeds("resize", image, "uboot-environment", "3MiB", *with_key)
    assert image.stat().st_size > before
    succeeds("grow", image, "16MiB", *with_key)
    assert image.stat().st_size == (16 << 20) + (2 << 20)
    succeeds("mv", image, "uboot-environment", "env", *with_key)
    succeeds("rm", image, "adapter-vpd", "tpm-volatile-state", *with_key)
    sections = json.loads(succeeds("ls", image, "--json", *with_key))
    assert {section["name"] for section in sections} == {"tpm-permanent-state", "env"}
    assert succeeds("get", image, "env", *with_key) == old
    assert b"no problems" in succeeds("verify", image, *with_key)
    assert fails("rm", image, "env", "unknown", *with_key) == 61
    assert fails("mv", image, "env", "tpm-permanent-state", *with_key) == 73
    assert fails("restore", image, "tpm-permanent-state", *with_key) == 74
    assert succeeds("get", image, "env", *with_key) == old


def test_a_pinned_state(image: Path, key: Path, tmp_path: Path) -> None:
    with_key = ("--key-file", key)
    container = json.loads(succeeds("info", image, "--json", *with_key))["container"]
    digest, generation = container["digest"], container["generation"]
    pinned = ("--expect-digest", digest, "--at-least-generation", str(generation))
    succeeds("verify", image, *with_key, *pinned)
    new = tmp_path / "new"
    new.write_bytes(b"new")
    saved = image.read_bytes()
    succeeds("put", image, "adapter-vpd", new, *with_key, *pinned)
    assert fails("verify", image, *with_key, "--expect-digest", digest) == 75
    image.write_bytes(saved)
    later = ("--at-least-generation", str(generation + 1))
    assert fails("get", image, "adapter-vpd", *with_key, *later) == 75
    assert fails("verify", image, *with_key, "--expect-digest", "1:00") == 2


def test_backup_clone_diff(image: Path, key: Path, tmp_path: Path) -> None:
    with_key = ("--key-file", key)
    copy, cloned = tmp_path / "copy", tmp_path / "cloned"
    succeeds("backup", image, copy, *with_key)
    assert copy.read_bytes() == image.read_bytes()
    assert fails("backup", image, copy, *with_key) == 69
    assert succeeds("diff", image, copy, *with_key, "--exit-code") == b""
    new = tmp_path / "new"
    new.write_bytes(b"new")
    succeeds("put", copy, "adapter-vpd", new, *with_key)
    succeeds("rm", copy, "uboot-environment", *with_key)
    changed = blobstore("diff", image, copy, *with_key, "--exit-code")
    assert changed.returncode == 1
    assert b"adapter-vpd" in changed.stdout
    assert b"removed" in changed.stdout
    differences = json.loads(succeeds("diff", image, copy, "--json", *with_key))
    assert {d["name"]: d["change"] for d in differences} == {
        "tpm-permanent-state": "same",
        "tpm-volatile-state": "same",
        "adapter-vpd": "changed",
        "uboot-environment": "removed",
    }
    new.write_bytes(b"another passphrase")
    succeeds("clone", copy, cloned, *with_key, "--tpm", "keep", "--new-key-file", new, *QUICK)
    same = ("--other-key-file", new, "--exit-code")
    assert succeeds("diff", copy, cloned, *with_key, *same) == b""
    succeeds("clone", copy, cloned, *with_key, "--tpm", "keep", "--no-encryption", "--force")
    assert succeeds("diff", copy, cloned, *with_key, "--exit-code") == b""


def test_a_blob_goes_to_a_pipe_without_replacing_it(tmp_path: Path, image: Path, key: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(pipe.read_bytes)
        succeeds("get", image, "adapter-vpd", "-o", pipe, "--force", "--key-file", key)
        blob = received.result(30)
    assert pipe.is_fifo()
    assert blob == succeeds("get", image, "adapter-vpd", "-o", "/dev/stdout", "--key-file", key)
