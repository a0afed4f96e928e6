"""What each verb does with an image in the middle of a re-encryption."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

import blobstore as library
import luks
from tests.support.cli import blobstore, succeeds

if TYPE_CHECKING:
    from pathlib import Path

SECRET, OTHER = b"secret", b"other"
COST = luks.Pbkdf2("sha256", 1000)
UNFINISHED = 45


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with a store: before a re-encryption, when it has begun, in its middle."""
    directory = tmp_path_factory.mktemp("made")
    image = directory / "before"
    with library.create(image, {"a": 4096, "b": 70000}, SECRET, kdf=COST, free=8192) as store:
        store.put("a", b"first")
        store.put("b", bytes(range(256)) * 250)
    luks.backup_header(image, directory / "backup")
    options = luks.ReencryptionOptions(kdf=COST, hotzone_size=32 << 10)
    for steps, name in enumerate(("begun", "middle")):
        shutil.copy(image, directory / name)
        with luks.begin_reencryption(directory / name, SECRET, options=options) as running:
            for _ in range(2 * steps):
                running.step()
    return directory


@pytest.fixture
def image(made: Path, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An image in the middle, or as the test's parameter says."""
    (tmp_path / "key").write_bytes(SECRET)
    (tmp_path / "other").write_bytes(OTHER)
    shutil.copy(made / "backup", tmp_path / "backup")
    shutil.copy(made / "before", tmp_path / "before")
    shutil.copy(made / str(getattr(request, "param", "middle")), tmp_path / "image")
    return tmp_path / "image"


def words(line: str, image: Path) -> list[str]:
    """Command-line arguments; names of files are relative to the image's directory."""
    names = {"IMAGE": "image", "KEY": "key", "OTHER": "other", "OUT": "out"}
    names |= {"BACKUP": "backup", "BEFORE": "before"}
    return [str(image.parent / names[word]) if word in names else word for word in line.split()]


def sections(image: Path) -> dict[str, bytes]:
    with library.open(image, SECRET) as store:
        store.verify()
        return {section.name: store.get(section.name) for section in store.sections()}


@pytest.mark.parametrize(
    "line",
    [
        "info IMAGE --key-file KEY",
        "verify --repair IMAGE --key-file KEY",
        "unpack IMAGE -o OUT --key-file KEY",
        "convert IMAGE OUT --to raw --key-file KEY",
        "backup IMAGE OUT --key-file KEY",
        "copy IMAGE OUT",
        "key list IMAGE",
        "key test IMAGE --key-file KEY",
        "luks dump IMAGE",
        "luks repair IMAGE",
        "header backup IMAGE OUT",
    ],
)
def test_l184_what_only_reads_works(line: str, image: Path) -> None:
    before = image.read_bytes()
    succeeds(*words(line, image))
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("put IMAGE a OTHER --key-file KEY", {"a": OTHER}),
        ("rm IMAGE a --key-file KEY", {"a": None}),
        ("scrub IMAGE --key-file KEY", {}),
    ],
)
def test_l184_what_changes_sections_works_and_the_reencryption_goes_on(
    line: str, changed: dict[str, bytes | None], image: Path
) -> None:
    wanted = {**sections(image), **changed}
    present = {name: blob for name, blob in wanted.items() if blob is not None}
    succeeds(*words(line, image))
    assert sections(image) == present
    with luks.resume_reencryption(image, SECRET) as running:
        running.run()
    assert luks.load_header(image).requirements == ()
    assert sections(image) == present


@pytest.mark.parametrize(
    "line",
    [
        "key add IMAGE --key-file KEY --new-key-file OTHER",
        "key remove IMAGE --key-file KEY --force",
        "token add IMAGE --key-description acme --key-slot 0",
        "luks config IMAGE --label acme",
        "header restore IMAGE BACKUP",
        "header detach IMAGE OUT",
        "grow IMAGE 8M --key-file KEY",
        "resize IMAGE a 900000 --key-file KEY",
    ],
)
def test_l187_what_changes_header_or_size_is_refused(line: str, image: Path) -> None:
    before = image.read_bytes()
    result = blobstore(*words(line, image))
    assert result.returncode == UNFINISHED, result.stderr
    assert b"--resume" in result.stderr
    assert image.read_bytes() == before
    assert not (image.parent / "out").exists()


@pytest.mark.parametrize("image", ["begun", "middle"], indirect=True)
def test_l187_a_passphrase_is_tested_with_both_keys(image: Path) -> None:
    assert succeeds(*words("key test IMAGE --key-file KEY", image)) == b"keyslot 0\nkeyslot 1\n"
    result = blobstore(*words("key test IMAGE --key-file OTHER", image))
    assert result.returncode == luks.NoKeyslotMatchError.exit_code
    listed = succeeds(*words("key list IMAGE", image)).decode()
    assert listed.count("the volume") == 2
    assert listed.count("records a re-encryption") == 1


def test_l187_a_backup_of_the_image_is_resumed_like_the_image(image: Path) -> None:
    wanted = sections(image)
    succeeds(*words("backup IMAGE OUT --key-file KEY", image))
    with luks.resume_reencryption(image.parent / "out", SECRET) as running:
        running.run()
    assert sections(image.parent / "out") == wanted == sections(image)


def test_l114_keys_are_destroyed(image: Path) -> None:
    succeeds(*words("key destroy IMAGE --force", image))
    result = blobstore(*words("ls IMAGE --key-file KEY", image))
    assert result.returncode == luks.UnlockError.exit_code


def test_l187_a_header_from_the_middle_is_not_restored(image: Path) -> None:
    succeeds(*words("header backup IMAGE OUT", image))
    for options in ("", " --force"):
        result = blobstore(*words(f"header restore IMAGE OUT{options}", image))
        assert result.returncode == UNFINISHED
    with luks.resume_reencryption(image, SECRET) as running:
        running.run()
    before = image.read_bytes()
    result = blobstore(*words("header restore IMAGE OUT --force", image))
    assert result.returncode == UNFINISHED
    assert image.read_bytes() == before
