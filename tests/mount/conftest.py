"""An image in the clear, a runtime directory, and an end for what is mounted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import blobstore
from tests.support.mounts import MountProcess, end_mounts
from tests.support.owners import own_runtime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of this test's own; what it starts ends with it."""
    yield from own_runtime(tmp_path, monkeypatch, end_mounts)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with blobstore.create(path, {"a": 5000, "b": 3000}, encrypted=False, free=4 << 20) as store:
        store.put("a", b"old a")
    return path


@pytest.fixture
def mounted(image: Path, tmp_path: Path) -> MountProcess:
    return MountProcess(image, tmp_path / "mnt")
