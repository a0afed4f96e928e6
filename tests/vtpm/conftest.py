"""Images for tests: without a TPM, and with one that has something to lose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vtpm import commands
from tests.vtpm.support import INDEX, STARTED, key_of, make_image, vtpm_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of this test's own, for the entries of images (V79)."""
    directory = tmp_path / "run"
    monkeypatch.setenv("BLOBSTORE_RUNTIME_DIR", str(directory))
    return directory


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "image")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The image of another host."""
    (tmp_path / "other").mkdir()
    return make_image(tmp_path / "other" / "image")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose TPM has something to lose."""
    image = make_image(tmp_path_factory.mktemp("used") / "image")
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        client.send(commands.nv_define(INDEX, 8))
        client.send(commands.nv_write(INDEX, b"precious"))
        client.close()
        assert tpm.end() == 0
    return image


@pytest.fixture
def copy(used: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copy"
    path.write_bytes(used.read_bytes())
    key_of(path).write_bytes(key_of(used).read_bytes())
    return path
