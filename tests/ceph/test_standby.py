"""Taking an image on Ceph over from a host that is dead, slow or cut off; and copying it."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.owner import StoreClient
from formats.errors import DeviceBusyError, DeviceError, StorageError
from tests.ceph.cluster import running_cluster
from tests.support.owners import OwnerProcess, end_owners

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.ceph.cluster import Cluster

pytestmark = [pytest.mark.interop, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("ceph"), durable=False) as running:
        yield running


@pytest.fixture(autouse=True)
def owners_ended() -> Iterator[None]:
    yield
    end_owners()


@pytest.fixture
def place(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    name = request.node.name.translate(str.maketrans("[]", "-_"))
    place = f"rbd:rbd/{name}:conf={cluster.conf}"
    blobstore.create(place, {"a": 100}, encrypted=False).close()
    return place


class Host:
    """An owner with a runtime directory of its own, as on another host."""

    def __init__(self, place: str, directory: Path, *options: str, waits: bool = True) -> None:
        directory.mkdir(exist_ok=True)
        self.socket = directory / "store.sock"
        self.owner = OwnerProcess(
            place,
            directory / "run",
            *options,
            *("--socket", self.socket),
            waits=waits,
        )

    def put(self, number: int) -> None:
        with StoreClient(self.socket) as store:
            store.put("a", b"%d" % number)

    def get(self) -> int:
        with StoreClient(self.socket) as store:
            return int(store.get("a"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_standby_has_the_image_when_its_owner_is_gone_o178(
    place: str, tmp_path: Path, how: signal.Signals
) -> None:
    first = Host(place, tmp_path / "1")
    standby = Host(place, tmp_path / "2", "--standby", waits=False)
    for number in range(20):
        first.put(number)
    began = time.monotonic()
    first.owner.end(how)
    standby.owner.wait()
    print(f"taken over after {time.monotonic() - began:.2f} s")
    assert standby.get() == 19
    standby.put(20)
    assert standby.owner.end()[0] == 0


def test_an_owner_that_was_only_slow_can_write_no_more_o180(place: str, tmp_path: Path) -> None:
    """Ceph has not heard of it for a while: then it is shut out, before the other one reads."""
    first = Host(place, tmp_path / "1")
    first.put(1)
    standby = Host(place, tmp_path / "2", "--standby", waits=False)
    first.owner.process.send_signal(signal.SIGSTOP)
    standby.owner.wait()
    assert standby.get() == 1
    standby.put(2)
    first.owner.process.send_signal(signal.SIGCONT)
    with pytest.raises(StorageError, match="shut out"):
        first.put(3)
    assert standby.get() == 2
    assert standby.owner.end()[0] == 0
    with blobstore.open(place, read_only=True, lock=False) as store:
        assert store.get("a") == b"2"


def test_a_human_takes_over_at_once_and_the_old_owner_is_shut_out_o181(
    place: str, tmp_path: Path
) -> None:
    first = Host(place, tmp_path / "1")
    first.put(1)
    with pytest.raises(DeviceBusyError, match="holds its lock"):
        blobstore.open(place, direct=True)
    second = Host(place, tmp_path / "2", "--take-over")
    assert second.get() == 1
    second.put(2)
    with pytest.raises(StorageError):
        first.put(3)
    assert second.get() == 2
    assert second.owner.end()[0] == 0


def test_an_image_moves_between_ceph_and_a_file_and_back_p40_p46(
    cluster: Cluster, place: str, tmp_path: Path
) -> None:
    local, back = tmp_path / "local.img", f"rbd:rbd/back:conf={cluster.conf}"
    with blobstore.open(place, direct=True) as store:
        store.put("a", b"1")
        with pytest.raises(DeviceBusyError):
            blobstore.copy(place, local)
    blobstore.copy(place, local, hand_over=True)
    with pytest.raises(blobstore.MovedImageError):
        blobstore.open(place)
    with blobstore.open(local) as store:
        assert store.get("a") == b"1"
        store.put("a", b"2")
    host = Host(str(local), tmp_path / "1")
    with StoreClient(host.socket) as owner:
        blobstore.copy(local, back, owner=owner, hand_over=True)
    with blobstore.open(back) as store:
        assert store.get("a") == b"2"
    with pytest.raises(DeviceError):
        blobstore.copy(back, f"rbd:none/image:conf={cluster.conf}")
    assert host.owner.end()[0] == 0
