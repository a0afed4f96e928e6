"""Bad input: each kind has its own error and exit code, and nothing is lost."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blobstore as library
import luks
from blobstore.cli.main import EXIT_CODES
from blobstore.container.open_container import open_container
from formats.errors import StorageError
from tests.support.cli import QUICK, blobstore, fails, succeeds, without_override

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = b"right"
KDF = luks.Pbkdf2("sha256", 1000)
BLOBS = {"tpm": b"T" * 5000, "vpd": b"V" * 100}
PAYLOAD = 2 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    specs = [library.SectionSpec(n, len(b), content=b) for n, b in BLOBS.items()]
    library.create(path, specs, SECRET, kdf=KDF, free=0).close()
    with library.open(path, SECRET, direct=True) as store:
        for name, blob in BLOBS.items():
            store.put(name, blob)
    (tmp_path / "key").write_bytes(SECRET)
    return path


def change(path: Path, offset: int, size: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(size)
        file.seek(offset)
        file.write(bytes(byte ^ 0x01 for byte in old))


def region_of(path: Path, use: str, section: str | None = None) -> int:
    with library.open(path, SECRET, read_only=True, direct=True) as store:
        image = store.image
        assert image
        for region in image.regions(store.regions()):
            if region.use.endswith(use) and region.section == section:
                return region.offset
    raise AssertionError(use)


def both_headers(path: Path) -> None:
    change(path, 5000)
    change(path, 16384 + 5000)


def both_container_headers(path: Path) -> None:
    change(path, PAYLOAD + 40)
    change(path, PAYLOAD + 4096 + 40)


def newest_blob(path: Path) -> None:
    change(path, region_of(path, "the blob", "tpm") + 4096)


def newest_head(path: Path) -> None:
    """Leave nothing of the head: what is garbled in one place only is mended (C67)."""
    with path.open("r+b") as file:
        file.seek(region_of(path, "the blob", "tpm") - 512)
        file.write(bytes(512))


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


#: What is done to the image, what is then asked, the code.
CASES: dict[str, tuple[Callable[[Path], object], tuple[str, ...], int]] = {
    "empty file": (lambda path: truncate(path, 0), ("get", "tpm"), 31),
    "zeros": (lambda path: path.write_bytes(bytes(3 << 20)), ("get", "tpm"), 31),
    "foreign file": (lambda path: path.write_bytes(b"GIF89a" * 9999), ("get", "tpm"), 32),
    "truncated in the container": (lambda path: truncate(path, PAYLOAD + 9000), ("get", "tpm"), 33),
    "truncated in the keyslots": (lambda path: truncate(path, 600_000), ("get", "tpm"), 33),
    "LUKS header, both copies": (both_headers, ("get", "tpm"), 35),
    "keyslot": (lambda path: change(path, 32768 + 50_000), ("get", "tpm"), 51),
    "container header, both copies": (both_container_headers, ("get", "tpm"), 34),
    "record head": (newest_head, ("get", "tpm"), 66),
    "blob": (newest_blob, ("get", "tpm"), 65),
    "unknown name": (lambda _: None, ("get", "unknown"), 61),
    "missing image": (Path.unlink, ("get", "tpm"), 20),
}


@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_bad_input_has_its_code(image: Path, case: str) -> None:
    damage, (verb, *arguments), code = CASES[case]
    damage(image)
    before = image.read_bytes() if image.exists() else b""
    done = blobstore(verb, image, *arguments, "--key-file", image.parent / "key")
    assert (done.returncode, done.stdout) == (code, b""), done
    assert done.stderr.startswith(b"blobstore: ")
    assert b"Traceback" not in done.stderr
    assert (image.read_bytes() if image.exists() else b"") == before


@pytest.mark.parametrize("copy", [0, 16384])
def test_one_damaged_luks_header_copy_is_survived(image: Path, copy: int) -> None:
    change(image, copy + 5000)
    done = blobstore("get", image, "tpm", "--key-file", image.parent / "key")
    assert (done.returncode, done.stdout) == (0, BLOBS["tpm"])
    assert b"header copy" in done.stderr
    verified = blobstore("verify", image, "--key-file", image.parent / "key")
    assert verified.returncode == 65
    assert b"LUKS header copy is damaged" in verified.stdout


@pytest.mark.parametrize("copy", [0, 4096])
def test_one_damaged_container_header_copy_is_survived(image: Path, copy: int) -> None:
    change(image, PAYLOAD + copy + 40)
    assert succeeds("get", image, "tpm", "--key-file", image.parent / "key") == BLOBS["tpm"]
    verified = blobstore("verify", image, "--key-file", image.parent / "key")
    assert verified.returncode == 65


@pytest.mark.parametrize(("damage", "code"), [(newest_head, 66), (newest_blob, 65)])
def test_what_is_sound_can_still_be_saved(
    image: Path, damage: Callable[[Path], object], code: int
) -> None:
    damage(image)
    key = image.parent / "key"
    out = image.parent / "saved"
    if damage is newest_head:  # nothing proves that what is left is the newest (C67)
        assert fails("get", image, "vpd", "--key-file", key) == 66
        assert fails("unpack", image, "-o", out, "--key-file", key) == 66
    permitted = ("--allow-damaged", "--key-file", key)
    assert blobstore("get", image, "vpd", *permitted).stdout == BLOBS["vpd"]
    done = blobstore("unpack", image, "-o", out, *permitted)
    assert done.returncode == code
    assert (out / "vpd.bin").read_bytes() == BLOBS["vpd"]
    assert not (out / "tpm.bin").exists()
    verified = blobstore("verify", image, "--key-file", key)
    assert verified.returncode == 65
    assert blobstore("get", image, "unknown", "--key-file", key).returncode == (
        66 if damage is newest_head else 61
    )


def every_head(path: Path) -> None:
    """Leave nothing of both heads of the section."""
    with library.open(path, SECRET, direct=True) as store:
        store.put("tpm", BLOBS["tpm"])
    payload = luks.open(path, SECRET, read_only=False)
    with payload:
        copies = open_container(payload).directory.sections["tpm"].copies
        for copy in filter(None, copies):
            payload.write(copy.offset, bytes(512))


def test_c82_a_section_whose_heads_are_lost_is_not_said_to_be_absent(image: Path) -> None:
    key = ("--key-file", image.parent / "key")
    copy = image.parent / "copy"
    copy.write_bytes(image.read_bytes())
    every_head(image)
    listed = blobstore("ls", image, "--json", *key)
    assert listed.returncode == 66
    names = [section["name"] for section in json.loads(listed.stdout)]
    assert names == [None, "vpd"]
    table = blobstore("ls", image, *key)
    assert table.returncode == 66
    assert b"a damaged head hides" in table.stdout
    assert b"sections may be missing" in table.stderr
    info = json.loads(blobstore("info", image, "--json", *key).stdout)
    assert info["container"]["complete"] is False
    for images in ((image, copy), (copy, image)):
        done = blobstore("diff", *images, *key)
        assert (done.returncode, done.stdout) == (66, b"")
        assert str(image) in done.stderr.decode()
    target = image.parent / "clone"
    assert fails("clone", image, target, "--no-encryption", *key) == 66
    assert not target.exists()
    out = image.parent / "out"
    assert fails("unpack", image, "-o", out, *key) == 66
    unpacked = blobstore("unpack", image, "-o", out, "--allow-damaged", *key)
    assert unpacked.returncode == 66
    assert b"a section may lie in" in unpacked.stderr
    assert fails("pack", out / "manifest.toml", "-o", target, "--no-encryption") == 71


def test_diff_says_where_it_could_not_read(image: Path) -> None:
    key = ("--key-file", image.parent / "key")
    copy = image.parent / "copy"
    copy.write_bytes(image.read_bytes())
    newest_blob(copy)
    for more in ((), ("--exit-code",), ("--json",)):
        done = blobstore("diff", image, copy, *key, *more)
        assert done.returncode == 65
        assert b"unreadable" in done.stdout


def test_a_wrong_passphrase_is_named_and_no_passphrase_is_another_thing(image: Path) -> None:
    (image.parent / "wrong").write_bytes(b"hunter2")
    done = blobstore("get", image, "tpm", "--key-file", image.parent / "wrong")
    assert done.returncode == 51
    assert b"hunter2" not in done.stderr
    missing = blobstore("get", image, "tpm", "--key-file", image.parent / "none")
    assert missing.returncode == 52


def test_a_blob_that_is_too_large_is_refused(image: Path) -> None:
    key = image.parent / "key"
    done = blobstore("put", image, "vpd", "-", "--key-file", key, stdin=b"x" * 101)
    assert done.returncode == 63
    assert succeeds("get", image, "vpd", "--key-file", key) == BLOBS["vpd"]


def test_an_image_that_must_not_be_written(image: Path) -> None:
    image.chmod(0o444)
    key = image.parent / "key"
    command = [
        sys.executable,
        "-m",
        "blobstore",
        "put",
        str(image),
        "tpm",
        "-",
        "--key-file",
        str(key),
    ]
    done = subprocess.run(
        [*without_override(), *command], input=b"new", capture_output=True, check=False
    )
    assert done.returncode == 22, done
    assert succeeds("get", image, "tpm", "--key-file", key) == BLOBS["tpm"]


def test_an_image_in_use_is_named(image: Path) -> None:
    key = image.parent / "key"
    with library.open(image, SECRET, direct=True):
        assert blobstore("get", image, "tpm", "--key-file", key).returncode == 23
        forced = blobstore("create", image, "--force", "--key-file", key, *QUICK)
        assert forced.returncode == 23
    assert succeeds("get", image, "tpm", "--key-file", key) == BLOBS["tpm"]


FULL_DISK = """
import resource, signal, sys
from blobstore.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(sys.argv.pop(1)),))
main()
"""


def test_a_pipe_is_no_image_and_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for arguments in (("ls", pipe), ("convert", pipe, tmp_path / "out"), ("check", pipe)):
        assert fails(*arguments) == 20


def test_create_answers_what_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(SECRET)
    new = ("create", tmp_path / "new", "--key-file", tmp_path / "key", *QUICK)
    assert fails(*new, "--luks", "1", "--sector-size", "4096") == 2
    assert fails(*new, "--header", tmp_path / "new") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("to", ["raw", "qcow2"])
def test_a_full_disk_gets_no_part_of_an_image(tmp_path: Path, to: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 2_000_000)
    arguments = ["convert", source, tmp_path / "out", "--to", to]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, "700000", *map(str, arguments)],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 21, done
    assert done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == [source]


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The file must not grow beyond a limit: there is no room for the holes in it."""
    image = tmp_path / "image"
    size = 6 << 20
    library.create(image, {"a": 100_000, "b": 100}, encrypted=False, size=size).close()
    with library.open(image, direct=True) as store:
        store.put("a", b"old")
    os.truncate(image, size)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, "50000", "put", str(image), "a", "-"],
        input=b"n" * 100_000,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 21, done
    assert succeeds("get", image, "a") == b"old"
    again = blobstore("put", image, "a", "-", stdin=b"new")
    assert again.returncode == 0
    assert b"rolling back" in again.stderr
    assert succeeds("get", image, "a") == b"new"


@pytest.mark.parametrize("content", [b"GIF89a" * 1000, b"LUKS\xba\xbe\0\1" + bytes(5000)])
def test_a_foreign_file_is_never_formatted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    (tmp_path / "manifest.toml").write_text('[[section]]\nname = "a"\ntext = "x"\n')
    (tmp_path / "key").write_bytes(SECRET)
    key = ("--key-file", tmp_path / "key")
    for arguments in (
        ("create", path, *key, *QUICK),
        ("create", path, "--no-encryption"),
        ("pack", tmp_path / "manifest.toml", "-o", path, *key, *QUICK),
        ("create", tmp_path / "new", "--header", path, *key, *QUICK),
    ):
        done = blobstore(*arguments)
        assert done.returncode in (32, 69), done
        assert path.read_bytes() == content
        assert not (tmp_path / "new").exists()
    succeeds("create", path, "--force", *key, *QUICK)
    assert library.is_encrypted(path)


def test_a_store_of_ours_is_not_overwritten_either(image: Path) -> None:
    before = image.read_bytes()
    key = image.parent / "key"
    assert blobstore("create", image, "--key-file", key, *QUICK).returncode == 69
    assert image.read_bytes() == before


@pytest.mark.parametrize("size", [0, 5 << 20])
def test_a_blank_file_may_be_formatted_and_keeps_its_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "blank"
    path.write_bytes(bytes(size))
    (tmp_path / "key").write_bytes(SECRET)
    succeeds("create", path, "--section", "a=10", "--key-file", tmp_path / "key", *QUICK)
    assert path.stat().st_size == size or size == 0
    with library.open(path, SECRET, read_only=True, direct=True) as store:
        assert store.info().encrypted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[section]", "no TOML"),
        ("[image]\nsizes = 3", "unknown keys: sizes"),
        ("[[section]]\nname = 'a'\nmax-sise = 3", "unknown keys: max-sise"),
        ("[[section]]\nmax-size = 3", "name: is missing"),
        ("[[section]]\nname = 'a'", "neither content nor max-size"),
        ("[[section]]\nname = 'a'\ntext = 'x'\nhex = '00'", "more than one content"),
        ("[[section]]\nname = 'a'\nhex = 'zz'", "hex"),
        ("[[section]]\nname = 'a'\nbase64 = '?'", "base64"),
        ("[[section]]\nname = 'a'\nfile = 'missing'", "cannot read"),
        ("[[section]]\nname = 'a'\nfile = '/dev/zero'", "/dev/zero has more than 268435456 bytes"),
        ("[[section]]\nname = 'a'\ntext = 'long'\nmax-size = 3", "more than its worst case"),
        ("[[section]]\nname = 'a'\nmax-size = '3KB'", "is not a size"),
        ("[[section]]\nname = 'a'\nmax-size = -3", "not a whole number"),
        ("[[section]]\nname = 'a'\nmax-size = 3\nkind = 'file'", "kind"),
        ("[[section]]\nname = 'a'\nmax-size = 3\ncopies = 3", "copies"),
        ("[[section]]\nname = 'a'\nmax-size = 3\ncopies = true", "whole number"),
        ("[[section]]\nname = 7\nmax-size = 3", "must be text"),
        ("[[section]]\nname = 'a'\ntext = 'x'\n[[section]]\nname = 'a'\ntext = 'x'", "twice"),
        ("[image]\nformat = 'vmdk'", "is raw or qcow2"),
        ("[image]\nluks = 3", "is 1, 2, qcow2 or false"),
        ("[image]\nluks = true", "is 1, 2, qcow2 or false"),
        ("[image]\nblock-size = 7", "image.block-size: is a power of two from 512 to 65536"),
        ("[image]\nblock-size = 4096.0", "image: block-size: must be a whole number"),
        ("[image]\nsector-size = 7", "image.sector-size: is a power of two from 512 to 4096"),
        ("[image]\nluks = 1\nsector-size = 4096", "image.sector-size: is 512 in LUKS1"),
        ("[image]\nluks = false\nheader = 'x'", "image.header: is for images with LUKS"),
        pytest.param(f"[image]\nluks = {'1' * 5000}", "is no TOML: Exceeds", id="digits"),
        ("image = 3", "must be a table"),
        ("section = 3", "array of tables"),
    ],
)
def test_a_bad_manifest_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    manifest = tmp_path / "manifest.toml"
    manifest.write_text(text)
    done = blobstore("pack", manifest, "-o", tmp_path / "image", "--no-encryption")
    assert done.returncode == 71, done
    assert message in done.stderr.decode()
    assert str(manifest) in done.stderr.decode()
    assert not (tmp_path / "image").exists()


def test_the_exit_codes_are_unique_and_documented() -> None:
    def subclasses(kind: type[StorageError]) -> set[type[StorageError]]:
        return {kind}.union(*(subclasses(sub) for sub in kind.__subclasses__()))

    for module in ("blobstore.cli.output", "blobstore.errors", "luks.errors"):
        importlib.import_module(module)
    codes = {kind.__name__: kind.exit_code for kind in subclasses(StorageError)}
    ours = {name: code for name, code in codes.items() if name.endswith("Error")}
    assert len(set(ours.values())) == len(ours)
    pattern = r"(?:^|  ) *(\d+)  \S"
    documented = {int(code) for code in re.findall(pattern, EXIT_CODES, re.MULTILINE)}
    assert documented == set(ours.values()) | {0, 2, 130, 141}
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", readme, re.MULTILINE)}
    assert table == documented


def test_no_output_takes_the_place_of_the_image(tmp_path: Path) -> None:
    image, key, link = tmp_path / "image", tmp_path / "key", tmp_path / "link"
    key.write_bytes(b"secret")
    succeeds("create", image, "--section", "uefi-variables=10", "--key-file", key, *QUICK)
    new = tmp_path / "new"
    new.write_bytes(b"new")
    succeeds("put", image, "uefi-variables", new, "--key-file", key)
    link.hardlink_to(image)
    before = image.read_bytes()
    for arguments in (
        ("get", image, "uefi-variables", "-o", link),
        ("backup", image, link),
        ("export", image, link, "--to", "raw", "--name", "uefi-variables"),
    ):
        assert fails(*arguments, "--force", "--key-file", key) == 2
    assert image.read_bytes() == before
    with pytest.raises(ValueError, match="image itself"):
        library.backup(image, link, b"secret", overwrite=True)
