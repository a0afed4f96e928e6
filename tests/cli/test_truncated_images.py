"""Every verb on images cut at many lengths: what a file causes is never wrong usage.

Nor is it "any other failure", or a traceback. What would change a LUKS header whose
keyslots area is not all there is refused, and changes nothing (L97).
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
import luks
from blobstore.cli import main as command_line
from tests.support.cli import QUICK
from tests.support.interrupts import EVERY_POINT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

KDF = luks.Pbkdf2("sha256", 1000)
SECRET, SECOND = b"right", b"second"
TRUNCATED = 33

KINDS: dict[str, dict[str, Any]] = {
    "luks1": {"luks_version": 1},
    "luks2": {},
    "detached": {"header": Path("header")},
    "clear": {"encrypted": False},
    "qcow2": {"encrypted": False, "image_format": "qcow2"},
    "qcow2's own": {"image_format": "qcow2", "own_luks": True},
}
#: Bytes that are left, besides shares of the whole: around magics, headers, areas.
LENGTHS = (0, 1, 6, 7, 104, 592, 4096, 5000, 16384, 20480, 32767, 32768, 32769, 258048, 290816)
#: Each verb is tried at every so manieth length, the next verb at others.
STEP = 1 if os.environ.get(EVERY_POINT) else 5


@dataclass
class Case:
    """An image, what it consists of, and which of its files is cut."""

    directory: Path
    header: tuple[object, ...]
    cut: Path
    whole: bytes

    def shorten(self, size: int | None) -> None:
        """Put everything back, and leave so many bytes of the file."""
        for path in self.directory.glob("out*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        shutil.copytree(self.directory / "kept", self.directory, dirs_exist_ok=True)
        self.cut.write_bytes(self.whole[:size])


def run(directory: Path, arguments: tuple[object, ...]) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and what it says.

    What would be a traceback is raised.
    """
    words = [str(directory / word if isinstance(word, Path) else word) for word in arguments]
    said = io.TextIOWrapper(io.BytesIO(), write_through=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["blobstore", *words])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
        patch.setattr(sys, "stderr", said)
        with pytest.raises(SystemExit) as end:
            command_line.main()
        code = end.value.code or 0
        assert isinstance(code, int)
        said.seek(0)
        return code, said.read()


IMAGE, OUT, KEY, NEW = Path("image"), Path("out"), Path("key"), Path("new")
KEYS = ("--key-file", KEY)
NEW_KEYS = ("--new-key-file", NEW, *QUICK)

#: What changes a header, so that it needs all of it; the rest of each line are its arguments.
HEADER_CHANGES: tuple[tuple[object, ...], ...] = (
    ("key", "add", IMAGE, *KEYS, *NEW_KEYS),
    ("key", "add", IMAGE, "--volume-key-file", Path("volume-key"), *NEW_KEYS),
    ("key", "change", IMAGE, *KEYS, *NEW_KEYS),
    ("key", "remove", IMAGE, "--key-slot", 1, "--force"),
    ("key", "remove", IMAGE, *KEYS, "--force"),
    ("key", "destroy", IMAGE, "--force"),
    ("token", "add", IMAGE, "--key-description", "k", "--key-slot", 0),
    ("token", "import", IMAGE, Path("token.json")),
    ("token", "remove", IMAGE, 0),
    ("token", "assign", IMAGE, 0, "--key-slot", 1),
    ("token", "unassign", IMAGE, 0, "--key-slot", 0),
    ("amend", IMAGE, "--json", '{"state": "inactive", "keyslot": 1}', "--force"),
    ("header", "backup", IMAGE, OUT),
    ("header", "restore", IMAGE, Path("backup")),
    ("header", "restore", IMAGE, Path("backup"), "--force"),
)

VERBS: tuple[tuple[object, ...], ...] = (
    *HEADER_CHANGES,
    ("key", "list", IMAGE),
    ("key", "test", IMAGE, *KEYS),
    ("key", "test", IMAGE, "--token", 0),
    ("key", "test", IMAGE, "--volume-key-file", Path("volume-key")),
    ("key", "export", IMAGE, "-o", OUT, "--force", *KEYS),
    ("token", "list", IMAGE),
    ("token", "export", IMAGE, 0),
    ("header", "dump", IMAGE),
    ("header", "detach", IMAGE, OUT),
    ("header", "attach", IMAGE, Path("backup")),
    ("header", "restore", Path("other"), IMAGE),
    ("header", "restore", Path("other"), IMAGE, "--force"),
    ("header", "attach", Path("other"), IMAGE),
    ("ls", IMAGE, *KEYS),
    ("info", IMAGE, *KEYS),
    ("get", IMAGE, "a", *KEYS),
    ("put", IMAGE, "a", Path("data"), *KEYS),
    ("restore", IMAGE, "a", *KEYS),
    ("rm", IMAGE, "b", *KEYS),
    ("mv", IMAGE, "a", "c", *KEYS),
    ("resize", IMAGE, "a", "9000", *KEYS),
    ("grow", IMAGE, "64MiB", *KEYS),
    ("compact", IMAGE, *KEYS),
    ("backup", IMAGE, OUT, *KEYS),
    ("clone", IMAGE, OUT, *KEYS, *NEW_KEYS),
    ("convert", IMAGE, OUT, *KEYS, *NEW_KEYS),
    ("convert", IMAGE, OUT, *KEYS, "--cipher", "aes-cbc-plain64", *NEW_KEYS),
    ("convert", IMAGE, OUT, *KEYS, "--to", "raw"),
    ("convert", Path("data"), IMAGE, "--no-create", "--from", "raw", "--new-key-file", KEY),
    ("diff", IMAGE, Path("other"), *KEYS),
    ("import", IMAGE, Path("data"), "--from", "raw", "--name", "z", *KEYS),
    ("export", IMAGE, OUT, "--to", "raw", "--name", "a", *KEYS),
    ("unpack", IMAGE, "-o", OUT, *KEYS),
    ("verify", IMAGE, *KEYS),
    ("verify", IMAGE, "--repair", *KEYS),
    ("scrub", IMAGE, *KEYS),
    ("show", IMAGE, "a", *KEYS),
    ("edit", IMAGE, "a", "x=1", *KEYS),
    ("vtpm", IMAGE, "--print-states", *KEYS),
    ("check", IMAGE),
    ("check", IMAGE, "--repair", "all"),
    ("measure", IMAGE),
    ("snapshot", "list", IMAGE),
    ("snapshot", "create", IMAGE, "s"),
    ("snapshot", "apply", IMAGE, "s"),
    ("snapshot", "delete", IMAGE, "s"),
)


def cases(directory: Path, kind: str) -> Iterator[Case]:
    """Make an image of a kind, and what the verbs need besides; yield what is to be cut."""
    kept = directory / "kept"
    kept.mkdir()
    for name, content in (("key", SECRET), ("new", b"new"), ("data", b"x" * 100)):
        (kept / name).write_bytes(content)
    (kept / "token.json").write_text('{"type": "acme", "keyslots": []}')
    options = dict(KINDS[kind])
    secret = None if "encrypted" in options else SECRET
    if "header" in options:
        options["header"] = kept / "header"
    if secret:
        options["kdf"] = KDF
    with blobstore.create(kept / "image", {"a": 5000, "b": 100}, secret, **options) as store:
        store.put("a", b"content")
    has_header = kind in {"luks1", "luks2", "detached"}
    place = options.get("header", kept / "image")
    if has_header:
        luks.add_keyslot(place, SECRET, SECOND, kdf=KDF)
        with luks.open_header(place) as (device, header):
            key = luks.unlock(device, header, SECRET)
        with key.key:
            (kept / "volume-key").write_bytes(key.key.view())
        if kind != "luks1":
            with luks.edit(place) as changes:
                changes.set_token({"type": "acme", "keyslots": ["0"]})
        luks.backup_header(place, kept / "backup")
    else:
        (kept / "volume-key").write_bytes(bytes(64))
        (kept / "backup").write_bytes(b"no header")
    shutil.copy(kept / "image", kept / "other")
    for name in ("image", "header") if "header" in options else ("image",):
        header_option = ("--header", Path("header")) if "header" in options else ()
        yield Case(directory, header_option, directory / name, (kept / name).read_bytes())


def arguments(case: Case, verb: tuple[object, ...]) -> tuple[object, ...]:
    """Add what says where the header is, for those that can be told."""
    told = verb[0] in {"check", "measure", "snapshot"} or verb[1] in {"detach", "attach"}
    if not case.header or told:
        return verb
    if "--no-create" in verb:
        return (*verb, "--new-header", case.header[1])
    return (*verb, *case.header)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_causes_is_never_wrong_usage(tmp_path: Path, kind: str) -> None:
    for case in cases(tmp_path, kind):
        size = len(case.whole)
        lengths = sorted({n for n in LENGTHS if n < size} | {size // 2, size - 4096, size - 1})
        for number, verb in enumerate(VERBS):
            command = arguments(case, verb)
            case.shorten(None)
            if run(tmp_path, command)[0] == 2:
                continue  # it does not go with such images, however long
            for length in lengths[number % STEP :: STEP]:
                case.shorten(length)
                code, said = run(tmp_path, command)
                assert code not in {1, 2}, (command, length, said)


@pytest.mark.parametrize("kind", ["luks1", "luks2", "detached"])
def test_l97_a_header_that_is_not_all_there_is_not_changed(tmp_path: Path, kind: str) -> None:
    *_, case = cases(tmp_path, kind)
    with luks.open_header(case.cut.parent / "kept" / case.cut.name) as (_, header):
        start, end = header.keyslots_offset, header.keyslots_offset + header.keyslots_size
    last = 4096 if kind == "luks1" else 0  # what pads its last keyslot may be missing
    for length in (start + (end - start) // 2, end - last - 1):
        for verb in HEADER_CHANGES:
            command = arguments(case, verb)
            case.shorten(None)
            if run(tmp_path, command)[0] == 2:
                continue
            case.shorten(length)
            code, said = run(tmp_path, command)
            assert code == TRUNCATED, (command, length, said)
            assert case.cut.read_bytes() == case.whole[:length]
        case.shorten(length)
        with pytest.raises(luks.TruncatedImageError):
            luks.repair(case.cut)
        assert case.cut.read_bytes() == case.whole[:length]


def test_a_defect_is_not_called_wrong_usage(tmp_path: Path) -> None:
    """A `ValueError` from inside is a traceback, so that it is reported and mended."""
    image = tmp_path / "image"
    blobstore.create(image, {"a": 100}, encrypted=False).close()

    def defect(*_: object, **__: object) -> None:
        raise ValueError("bytes 4096 to 8192 are outside a device of 100 bytes")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("luks.edit", defect)
        with pytest.raises(ValueError, match="outside a device"):
            run(tmp_path, ("token", "remove", IMAGE, 0))
