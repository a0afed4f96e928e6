"""An image in the clear, so that opening it takes no time, and places for sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.owner import StoreClient
from tests.support.c_client import CClient, build_driver
from tests.support.foreign import system_file
from tests.support.owners import own_runtime, owner_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.owner.server import OwnerServer


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of this test's own; the owners that it starts end with it."""
    yield from own_runtime(tmp_path, monkeypatch)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    blobstore.create(path, {"a": 5000, "b": 3000}, encrypted=False, free=1 << 20).close()
    return path


@pytest.fixture
def store(image: Path) -> Iterator[blobstore.Store]:
    with blobstore.open(image, direct=True) as opened:
        yield opened


@pytest.fixture
def server(store: blobstore.Store, image: Path, tmp_path: Path) -> Iterator[OwnerServer]:
    with owner_thread(store, image, tmp_path / "socket") as running:
        yield running


@pytest.fixture
def client(server: OwnerServer, tmp_path: Path) -> Iterator[StoreClient]:
    del server
    with StoreClient(tmp_path / "socket", timeout=60) as opened:
        yield opened


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    system_file("/usr/include/stdio.h")
    return build_driver(tmp_path_factory.mktemp("c"))


@pytest.fixture
def c(driver: Path) -> Iterator[CClient]:
    with CClient(driver) as client:
        yield client
