"""L140: volumes that are dearer to open than usual, with ``--allow-slow-keys``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import blobstore as library
import luks
from tests.luks.programs import cryptsetup
from tests.support.cli import QUICK, blobstore, fails, succeeds

if TYPE_CHECKING:
    from pathlib import Path

#: Dear by its lanes only, so that the tests are not.
SLOW = luks.Argon2("argon2id", 4, 256, 20)
ALLOWED = ("--allow-slow-keys", 2)
SECRET, OTHER = b"secret", b"another"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def new_key(tmp_path: Path) -> Path:
    path = tmp_path / "new-key"
    path.write_bytes(OTHER)
    return path


@pytest.fixture(params=["raw", "header", "qcow2"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[object, ...]:
    """The arguments that name an image with one slow keyslot."""
    kind, path = request.param, tmp_path / "image"
    header = tmp_path / "header" if kind == "header" else None
    library.create(
        path,
        [library.SectionSpec("a", 100, content=b"blob")],
        SECRET,
        header=header,
        image_format="qcow2" if kind == "qcow2" else "raw",
        kdf=SLOW,
    ).close()
    return (path, "--header", header) if header else (path,)


def test_l140_every_verb_takes_the_option(
    image: tuple[object, ...], key: Path, new_key: Path, tmp_path: Path
) -> None:
    path, *header = image
    options = (*header, "--key-file", key)
    copy, clone, backup = (tmp_path / name for name in ("copy", "clone", "backup"))
    new = ("--new-key-file", new_key, *QUICK)
    assert fails("get", path, "a", *options) == 53
    assert succeeds("get", path, "a", *options, *ALLOWED) == b"blob"
    for verb in (
        ("convert", path, copy, *new),
        ("clone", path, clone, *new),
        ("backup", path, backup),
        ("key", "add", path, *new),
    ):
        assert fails(*verb, *options) == 53, verb
        done = blobstore(*verb, *options, *ALLOWED)
        assert done.returncode == 0, (verb, done)
    assert succeeds("key", "test", path, *options, *ALLOWED) == b"keyslot 0\n"
    exported = tmp_path / "exported"
    succeeds("key", "export", path, "-o", exported, "--force", *options, *ALLOWED)
    assert exported.stat().st_size == 64
    other = ("--other-header", header[1]) if header else ()
    assert succeeds("diff", path, backup, *other, *options, *ALLOWED) == b""


def test_l140_the_refusal_names_the_option(image: tuple[object, ...], key: Path) -> None:
    done = blobstore("get", *image, "a", "--key-file", key)
    assert b"lanes=20" in done.stderr
    assert b"--allow-slow-keys" in done.stderr
    assert b"KdfLimits" in done.stderr


def test_l140_a_slow_key_of_cryptsetup_is_changed(tmp_path: Path, key: Path, new_key: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(20 << 20))
    slow = ("--pbkdf=argon2id", "--pbkdf-memory=32", "--pbkdf-parallel=1")
    cryptsetup("luksFormat", *slow, "--pbkdf-force-iterations=66000", image, key)
    old = ("--key-file", key)
    assert fails("key", "change", image, *old, "--new-key-file", new_key, *QUICK) == 53
    done = blobstore("key", "change", image, *old, "--new-key-file", new_key, *QUICK, *ALLOWED)
    assert done.returncode == 0, done
    cryptsetup("open", "--test-passphrase", "--key-file", new_key, image)


def test_l140_in_python(tmp_path: Path) -> None:
    image = tmp_path / "image"
    library.create(image, {"a": 100}, SECRET, kdf=SLOW).close()
    with pytest.raises(luks.PolicyError):
        library.open(image, SECRET)
    with library.open(image, SECRET, limits=luks.KdfLimits().scaled(2)) as store:
        assert [section.name for section in store.sections()] == ["a"]
    with pytest.raises(luks.PolicyError):
        library.open(image, SECRET, limits=luks.KdfLimits(iterations=1 << 30))


def test_l140_in_python_of_an_image_that_qcow2_encrypts(tmp_path: Path) -> None:
    image = tmp_path / "image"
    kdf = luks.Pbkdf2("sha256", 2000)
    library.create(image, {"a": 100}, SECRET, image_format="qcow2", own_luks=True, kdf=kdf).close()
    with pytest.raises(luks.PolicyError):
        library.open(image, SECRET, limits=luks.KdfLimits(iterations=1999))
    library.open(image, SECRET, limits=luks.KdfLimits(iterations=2000)).close()
