"""One kind of place for each test, on servers that run for all tests of a session."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ceph.cluster import running_cluster
from tests.places.support import Places
from tests.support.owners import end_owners

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.ceph.cluster import Cluster


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of this test's own; the owners that it starts end with it."""
    # Not pytest's tmp_path, which may be too long for the name of a socket.
    with tempfile.TemporaryDirectory(prefix="run-") as name:
        directory = Path(name)
        monkeypatch.setenv("BLOBSTORE_RUNTIME_DIR", name)
        yield directory
        end_owners()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("ceph"), durable=False) as running:
        yield running


@pytest.fixture(
    params=[
        pytest.param("nbdkit", marks=pytest.mark.interop),
        pytest.param("qemu-nbd", marks=pytest.mark.interop),
        pytest.param("rbd", marks=[pytest.mark.interop, pytest.mark.slow]),
    ]
)
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    """Make places of each kind."""
    found = request.getfixturevalue("cluster") if request.param == "rbd" else None
    directory = tmp_path / "servers"
    directory.mkdir()
    with Places(request.param, directory, found) as made:
        yield made
