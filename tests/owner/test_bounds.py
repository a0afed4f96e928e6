"""Memory, threads and descriptors are bounded, whatever clients do (O11, O72, O73)."""

from __future__ import annotations

import resource
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.owner import StoreClient
from blobstore.owner.budget import Budget
from blobstore.owner.limits import Limits
from blobstore.owner.problems import RefusedError
from tests.owner.test_http import ask, request
from tests.support.effort import cases
from tests.support.owners import OwnerProcess, owner_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

MiB = 1 << 20


# ------------------------------------------------------------------- memory


def test_small_bodies_take_nothing_o72() -> None:
    budget = Budget(100, 0)
    with (
        budget.taken(100 << 10),
        budget.taken(64 << 10),
        budget.taken(0),
        pytest.raises(RefusedError) as info,
        budget.taken((64 << 10) + 1),
    ):
        pass
    assert (info.value.status, info.value.rule) == (503, "O72")
    assert info.value.headers == (("retry-after", "1"),)


def test_bodies_wait_in_order_o72() -> None:
    budget = Budget(3 * MiB, 60)
    order: list[str] = []
    threads = []

    def take(name: str, size: int) -> None:
        with budget.taken(size):
            order.append(name)

    with budget.taken(2 * MiB):
        # A small one that would fit does not overtake a large one that waits.
        for name, size in (("large", 99 * MiB), ("small", MiB)):
            threads.append(threading.Thread(target=take, args=(name, size)))
            threads[-1].start()
            while len(budget._waiting) < len(threads):
                time.sleep(0.001)
        assert not order
    for thread in threads:
        thread.join(60)
    assert order == ["large", "small"]
    assert budget._left == 3 * MiB


def test_one_that_waited_in_vain_gives_its_turn_back_o72() -> None:
    budget = Budget(3 * MiB, 0.2)
    with budget.taken(2 * MiB):
        with pytest.raises(RefusedError), budget.taken(2 * MiB):
            pass
        with budget.taken(MiB):
            pass
    assert (budget._left, len(budget._waiting)) == (3 * MiB, 0)


@pytest.fixture
def narrow(store: blobstore.Store, image: Path, tmp_path: Path) -> Iterator[Path]:
    store.register("large", MiB)
    store.put("large", bytes(MiB))
    limits = Limits(bodies=MiB, waiting=0.3, receiving=60)
    with owner_thread(store, image, tmp_path / "narrow", limits):
        yield tmp_path / "narrow"


def test_bodies_have_so_much_memory_together_o72(narrow: Path, store: blobstore.Store) -> None:
    with socket.socket(socket.AF_UNIX) as slow:
        slow.settimeout(60)
        slow.connect(str(narrow))
        slow.sendall(request("PUT /v1/sections/large", f"Content-Length: {MiB}", body=b"1"))
        time.sleep(0.2)
        for other in (
            request("PUT /v1/sections/large", f"Content-Length: {MiB - 1}"),
            request("PUT /v1/sections/large", "Transfer-Encoding: chunked"),
            request("GET /v1/sections/large"),
            request("POST /v1/transactions", f"Content-Length: {MiB}"),
        ):
            refused = ask(narrow, other)
            assert refused.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in refused
            assert b"O72" in refused
        # What is small goes on.
        with StoreClient(narrow) as client:
            client.put("a", b"1")
            assert client.get("a") == b"1"
        slow.sendall(bytes(MiB - 1))
        assert slow.recv(100).startswith(b"HTTP/1.1 204 ")
    with StoreClient(narrow) as client:
        client.put("large", bytes(MiB))
        assert store.get("large") == client.get("large")


def test_a_client_that_leaves_gives_its_memory_back_o72(narrow: Path) -> None:
    for sent in (
        request("PUT /v1/sections/large", f"Content-Length: {MiB}", body=b"1"),
        request("PUT /v1/sections/large", "Transfer-Encoding: chunked", body=b"zz\r\n"),
        request("PUT /v1/sections/large", f"Content-Length: {MiB}", "If-Match: x") + bytes(MiB),
    ):
        assert ask(narrow, sent)[9:12] == b"400"
    with StoreClient(narrow) as client:
        assert len(client.get("large")) == MiB


# --------------------------------------------------------------- connections


@contextmanager
def connected(path: Path, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Have so many connections; some may have been closed by the owner."""
    with ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(path))  # waits while the queue of the owner is full
            sock.settimeout(60)
            if sent:
                with suppress(BrokenPipeError, ConnectionResetError):
                    sock.sendall(sent)
            sockets.append(sock)
        yield sockets


@pytest.mark.parametrize("sent", [b"", b"GET /v1", b"\r\n"])
def test_connections_without_a_request_give_way_o73(
    store: blobstore.Store, image: Path, tmp_path: Path, sent: bytes
) -> None:
    path = tmp_path / "few"
    with (
        owner_thread(store, image, path, Limits(connections=4)),
        connected(path, 4, sent),
        StoreClient(path) as client,
    ):
        deadline = time.monotonic() + 60
        while True:
            try:
                client.put("a", b"1")
                break
            except blobstore.StorageError as error:
                assert "too many connections" in str(error)  # noqa: PT017
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with connected(path, 20, sent):
            time.sleep(0.5)
            with StoreClient(path) as other:
                other.put("a", b"2")
        assert client.get("a") == b"2"


def test_no_request_is_lost_where_connections_give_way_o73(
    store: blobstore.Store, image: Path, tmp_path: Path
) -> None:
    """More clients than connections, each with pauses in which its connection is taken."""
    path = tmp_path / "few"
    store.put("a", b"0")
    counts: list[int] = []
    failures: list[BaseException] = []

    def count(number: int) -> None:
        try:
            with StoreClient(path) as client:
                while counts.count(number) < 5:
                    try:
                        with client.transaction() as changes:
                            changes.put("a", str(int(changes.get("a")) + 1).encode())
                        counts.append(number)
                    except blobstore.GenerationMismatchError:
                        pass
                    except blobstore.StorageError as error:
                        if "too many connections" not in str(error):
                            raise
                    time.sleep(0.26)
        except BaseException as error:  # noqa: BLE001  asserted below
            failures.append(error)

    with owner_thread(store, image, path, Limits(connections=3)):
        threads = [threading.Thread(target=count, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert failures == []
    assert int(store.get("a")) == len(counts)
    assert set(counts) == set(range(6))


def process(number: int) -> dict[str, int]:
    """Return KiB of memory, threads and descriptors of a process."""
    lines = Path(f"/proc/{number}/status").read_text().splitlines()
    status = {key: value for key, _, value in (line.partition(":") for line in lines)}
    return {
        "memory": int(status["VmRSS"].split()[0]),
        "threads": int(status["Threads"]),
        "descriptors": len(list(Path(f"/proc/{number}/fd").iterdir())),
    }


def test_thousands_of_connections_leave_the_owner_as_it_was_o73(image: Path, runtime: Path) -> None:
    """10,000 with BLOBSTORE_THOROUGH=1, one after the other and at the same time."""
    count = cases(400, 10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    at_once = min(count, hard - 200)
    owner = OwnerProcess(image, runtime)
    # It logs each connection, and must not wait for those who read that.
    assert owner.process.stderr is not None
    reading = threading.Thread(target=owner.process.stderr.read)
    reading.start()
    pauses: list[float] = []
    ended = threading.Event()

    def work() -> None:
        """Put all the time, as the owner's own work; connections that give way are made again."""
        with StoreClient(owner.socket) as client:
            while not ended.is_set():
                began = time.monotonic()
                try:
                    client.put("a", bytes(5000))
                except blobstore.StorageError as error:
                    assert "too many connections" in str(error)  # noqa: PT017
                    continue
                pauses.append(time.monotonic() - began)

    try:
        with StoreClient(owner.socket) as client, connected(owner.socket, 70):
            client.put("a", b"1")
            before = process(owner.process.pid)
        working = threading.Thread(target=work)
        working.start()
        began = time.monotonic()
        for _ in range(count):
            with connected(owner.socket, 1):
                pass
        one_by_one = time.monotonic() - began
        began = time.monotonic()
        with connected(owner.socket, at_once):
            together = time.monotonic() - began
            during = process(owner.process.pid)
            with StoreClient(owner.socket) as client:
                for _ in range(200):
                    try:
                        assert client.get("a") is not None
                        break
                    except blobstore.StorageError as error:
                        assert "too many connections" in str(error)  # noqa: PT017
                        time.sleep(0.05)
                else:
                    raise AssertionError("no place for another client")
        ended.set()
        working.join(60)
        after = process(owner.process.pid)
        print(f"{count} one by one in {one_by_one:.1f} s, {at_once} at once in {together:.1f} s;")
        print(f"{len(pauses)} puts meanwhile, the longest {max(pauses):.3f} s;")
        print(f"before {before}, during {during}, after {after}")
        assert len(pauses) > 10
        for found in (during, after):
            assert found["memory"] < before["memory"] + (16 << 10)
            assert found["threads"] <= 70
            assert found["descriptors"] <= 100
        owner.process.terminate()
        assert owner.process.wait(60) == 0
    finally:
        ended.set()
        owner.process.kill()
        owner.process.wait()
        reading.join()
        owner.process.stderr.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
