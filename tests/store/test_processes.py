"""docs/emulators.md: what processes, threads and asyncio may do with a store, row by row."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from formats.errors import DeviceBusyError
from tests.store.test_fork import in_child

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext

PAGE = Path(__file__).resolve().parents[2] / "docs" / "emulators.md"
SECRET = b"processes"
QUICK = luks.Pbkdf2("sha256", 1000)

ROWS: dict[str, Callable[[Path], None]] = {}

#: What a worker finds after a fork; for the row with a global.
STORE: blobstore.Store | None = None


def row(use: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Make a function the test of a row of the table."""

    def entered(test: Callable[[Path], None]) -> Callable[[Path], None]:
        ROWS[use] = test
        return test

    return entered


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with blobstore.create(path, {"a": 100, "b": 100}, SECRET, kdf=QUICK) as store:
        store.put("a", b"first")
        store.put("b", b"first")
    return path


def put_in(path: Path, content: bytes) -> bytes:
    """Open the image in this process, put, and return what was there."""
    with blobstore.open(path, SECRET, direct=True) as store:
        before = store.get("a")
        store.put("a", content)
    return before


def put_through(store: blobstore.Store, content: bytes) -> None:
    store.put("a", content)


def put_into_global() -> str:
    assert STORE is not None
    try:
        STORE.put("a", b"worker")
    except blobstore.StorageError as error:
        STORE.close()
        return type(error).__name__
    return "it was put"


def run_process(context: BaseContext, target: Callable[..., object], *arguments: object) -> int:
    process = context.Process(target=target, args=arguments)  # type: ignore[attr-defined]
    process.start()
    process.join(60)
    assert process.exitcode is not None, "it hangs"
    code: int = process.exitcode
    return code


def exit_with_code(store: blobstore.Store) -> None:
    """Use a store in a worker, whose exit code says what came of it."""
    try:
        store.get("a")
    except blobstore.StorageError as error:
        sys.exit(error.exit_code)


@row("several threads, one store")
def threads(path: Path) -> None:
    with blobstore.open(path, SECRET, direct=True) as store:

        def work(number: int) -> None:
            for count in range(20):
                content = b"%d %d" % (number, count)
                with store.transaction() as changes:
                    changes.put("a", content)
                    changes.put("b", content)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert store.get("a") == store.get("b")
        assert store.verify().ok


@row("`asyncio.to_thread`")
def asynchronous(path: Path) -> None:
    async def work(store: blobstore.Store) -> None:
        puts = [asyncio.to_thread(store.put, "a", b"%d" % number) for number in range(20)]
        await asyncio.gather(*puts)
        ended = threading.Event()

        def slow() -> None:
            with store.transaction() as changes:
                time.sleep(0.05)
                changes.put("b", b"ended")
            ended.set()

        task = asyncio.create_task(asyncio.to_thread(slow))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ended.wait, 10)

    with blobstore.open(path, SECRET, direct=True) as store:
        asyncio.run(work(store))
        assert store.get("b") == b"ended"
        assert store.get("a").isdigit()


@row("`subprocess` while a store is open")
def programs(path: Path) -> None:
    store = blobstore.open(path, SECRET, direct=True)
    program = subprocess.Popen(["/bin/sleep", "60"])
    try:
        store.put("a", b"second")
        names = [link.readlink() for link in Path(f"/proc/{program.pid}/fd").iterdir()]
        assert path not in names
        store.close()
        assert put_in(path, b"third") == b"second"
    finally:
        program.kill()
        program.wait()


@row("spawn and forkserver: the child opens the path")
def spawned(path: Path) -> None:
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with blobstore.open(path, SECRET, direct=True) as store:
            assert run_process(context, put_in, path, b"too early")
            store.put("a", b"of the parent")
        assert run_process(context, put_in, path, method.encode()) == 0
        with blobstore.open(path, SECRET, direct=True) as store:
            assert store.get("a") == method.encode()


@row("fork, then open in the child")
def opened_in_child(path: Path) -> None:
    def busy() -> None:
        with pytest.raises(DeviceBusyError):
            blobstore.open(path, SECRET, direct=True)

    with blobstore.open(path, SECRET, direct=True):
        in_child(busy)
    in_child(lambda: put_in(path, b"of the child"))
    assert put_in(path, b"of the parent") == b"of the child"


@row("a daemon: fork, then open")
def daemon(path: Path) -> None:
    from blobstore.cli.service import fork_into_background

    told = path.with_name("told")

    def start() -> None:
        ready = fork_into_background()  # what was started ends in here
        with blobstore.open(path, SECRET, direct=True) as store:
            store.put("a", b"of the daemon")
            told.write_text(str(os.getpid()))
            ready()
            time.sleep(60)

    in_child(start)  # ends with success as soon as the daemon is ready
    number = int(told.read_text())
    try:
        with pytest.raises(DeviceBusyError, match=str(number)):
            blobstore.open(path, SECRET, direct=True)
    finally:
        os.kill(number, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while True:
        try:
            assert put_in(path, b"after it") == b"of the daemon"
        except DeviceBusyError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            break


@row("fork while a store is open; the parent continues")
def parent_goes_on(path: Path) -> None:
    store = blobstore.open(path, SECRET, direct=True)
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        store.put("a", b"second")
        store.close()
        assert put_in(path, b"third") == b"second"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@row("the child uses an object opened before the fork")
def child_uses(path: Path) -> None:
    with blobstore.open(path, SECRET, direct=True) as store:
        held, end = threading.Event(), threading.Event()

        def hold() -> None:
            with store.transaction():
                held.set()
                end.wait()

        def child() -> None:
            for use in (lambda: store.get("a"), lambda: store.put("a", b"x"), store.digest):
                with pytest.raises(blobstore.ForkedProcessError):
                    use()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        in_child(child)
        end.set()
        thread.join()


@row("the child closes it, leaves its `with` block, or ends")
def child_ends(path: Path) -> None:
    with blobstore.open(path, SECRET, direct=True) as store:
        store.put("a", b"second")
        before = path.read_bytes()

        def child() -> None:
            store.close()
            with store:
                pass

        in_child(child)
        assert path.read_bytes() == before
        with pytest.raises(DeviceBusyError):
            blobstore.open(path, SECRET, direct=True)
        store.put("a", b"third")


@row("`multiprocessing` with fork: a store as argument or global")
def forked_workers(path: Path) -> None:
    global STORE  # noqa: PLW0603  that is the case
    context = multiprocessing.get_context("fork")
    with blobstore.open(path, SECRET, direct=True) as STORE:
        before = path.read_bytes()
        code = blobstore.ForkedProcessError.exit_code
        assert run_process(context, exit_with_code, STORE) == code
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            results = {pool.submit(put_into_global).result(60) for _ in range(4)}
        assert results == {"ForkedProcessError"}
        with context.Pool(2) as workers:
            assert {*workers.starmap(put_into_global, [()] * 4)} == {"ForkedProcessError"}
        assert path.read_bytes() == before
        STORE.put("a", b"of the parent")
    STORE = None
    assert put_in(path, b"next") == b"of the parent"


@row("spawn, forkserver, `ProcessPoolExecutor`: a store as argument")
def pickled(path: Path) -> None:
    with blobstore.open(path, SECRET, direct=True) as store:
        for method in ("spawn", "forkserver"):
            context = multiprocessing.get_context(method)
            with pytest.raises(TypeError, match="open it there"):
                context.Process(target=put_through, args=(store, b"x")).start()  # type: ignore[attr-defined]
        for method in ("spawn", "forkserver", "fork"):
            context = multiprocessing.get_context(method)
            with (
                concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool,
                pytest.raises(TypeError, match="open it there"),
            ):
                pool.submit(put_through, store, b"x").result(60)
        assert store.get("a") == b"first"


@row("the same path opened twice for writing, in one process too")
def twice(path: Path) -> None:
    with blobstore.open(path, SECRET, direct=True):
        for read_only in (False, True):
            with pytest.raises(DeviceBusyError):
                blobstore.open(path, SECRET, read_only=read_only, direct=True)


@row("another process reads with `lock=False` beside the writer")
def unlocked_reader(path: Path) -> None:
    """`tests/store/test_unlocked.py` has the cases."""
    with blobstore.open(path, SECRET, direct=True) as store:

        def child() -> None:
            with blobstore.open(path, SECRET, read_only=True, lock=False, direct=True) as reader:
                assert reader.get("a") == b"second"

        store.put("a", b"second")
        in_child(child)
        with blobstore.open(path, SECRET, read_only=True, lock=False, direct=True) as reader:
            for number in range(10):
                store.put("a", b"%d" % number)
            assert reader.get("a") == b"9"


@row("the image is handed over: `release`, then `take_over` elsewhere")
def handed_over(path: Path) -> None:
    """`tests/store/test_handover.py` has the cases."""
    with blobstore.open(path, SECRET, direct=True) as old:
        old.put("a", b"second")
        old.release()
        digest = old.digest()

        def child() -> None:
            with blobstore.open(path, SECRET, released=True, direct=True) as new:
                new.take_over(expect_digest=digest)
                assert new.get("a") == b"second"
                new.put("a", b"of the child")

        in_child(child)
        old.take_over()
        assert old.get("a") == b"of the child"


def rows() -> list[str]:
    page = PAGE.read_text()
    table = page[page.index("| Use |") :].split("\n\n")[0]
    return re.findall(r"^\| (.*?) \| (?:yes|no|harmless) \| .* \|$", table, re.MULTILINE)


def test_each_row_has_a_test_and_each_test_a_row() -> None:
    assert rows() == [*ROWS]


@pytest.mark.parametrize("use", ROWS)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_c64_a_row_holds(path: Path, use: str) -> None:
    ROWS[use](path)
    with blobstore.open(path, SECRET, direct=True) as store:
        assert store.verify().ok
