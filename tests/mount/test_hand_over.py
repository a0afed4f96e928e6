"""Programs that use a directory while its owner is replaced, again and again (M60 to M63)."""

from __future__ import annotations

import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

import pytest

import blobstore
from tests.support.effort import cases
from tests.support.mounts import take_away
from tests.support.owners import OwnerProcess, end_owners

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop

SERVING = "blobstore.owner.serving"
#: At which the successor is killed, and the owner goes on.
OF_THE_SUCCESSOR = [
    f"{SERVING}.handing:Predecessor.released:after",
    f"{SERVING}.mount_front:RunningMount._adopt:after",
    f"{SERVING}.open_fronts:OpenFronts.start:after",
]
#: At which the owner is killed, when it has passed everything on.
OF_THE_OWNER = [
    f"{SERVING}.handing:Messages.send:after:2",
    f"{SERVING}.service:Service._is_taken:after",
    f"{SERVING}.mount_front:RunningMount.stop:before",
    f"{SERVING}.mount_front:RunningMount.stop:after",
]


class Writing:
    """Threads that use files all the time, of which none may see an error or a lost byte."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ends = threading.Event()
        self._failures: list[BaseException] = []
        self.rounds: dict[str, int] = {}
        self.longest = 0.0
        self.acknowledged: dict[str, bytes] = {}
        kinds = (self._replacing, self._in_place, self._slowly, self._window, self._looking)
        self._threads = [threading.Thread(target=self._run, args=(kind,)) for kind in kinds]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        if self._failures:
            raise self._failures[0]

    def go_on(self, rounds: int = 2) -> None:
        """Wait until each has done some more."""
        wanted = {name: done + rounds for name, done in self.rounds.items()}
        deadline = time.monotonic() + 60
        while len(wanted) < 5 or any(self.rounds[name] < done for name, done in wanted.items()):
            assert not self._failures, self._failures[0]
            assert time.monotonic() < deadline, self.rounds
            time.sleep(0.002)
            if len(wanted) < 5:
                wanted = {name: done + rounds for name, done in self.rounds.items()}

    def _run(self, kind: Callable[[], Iterator[None]]) -> None:
        name = kind.__name__
        try:
            began = time.monotonic()
            for _ in kind():
                now = time.monotonic()
                self.longest = max(self.longest, now - began)
                began = now
                self.rounds[name] = self.rounds.get(name, 0) + 1
                if self._ends.is_set() and name != "_slowly":
                    return
        except BaseException as error:  # noqa: BLE001  raised in the thread of the test
            self._failures.append(error)

    def _replacing(self) -> Iterator[None]:
        """Save a file as careful programs do."""
        path = self._directory / "replaced"
        for number in range(1 << 30):
            data = str(number).encode() * 200
            new = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            assert os.write(new, data) == len(data)
            os.fsync(new)
            os.close(new)
            os.replace(f"{path}.tmp", path)
            self.acknowledged["replaced"] = data
            assert path.read_bytes() == data
            yield

    def _in_place(self) -> Iterator[None]:
        """Keep a file open, and commit each change with fsync."""
        file = os.open(self._directory / "kept", os.O_RDWR | os.O_CREAT, 0o640)
        for number in range(1 << 30):
            data = b"%20d" % number
            assert os.pwrite(file, data, 100) == 20
            os.fsync(file)
            self.acknowledged["kept"] = bytes(100) + data
            assert os.pread(file, 200, 0) == bytes(100) + data
            assert os.fstat(file).st_mode & 0o777 == 0o640
            yield
        os.close(file)

    def _slowly(self) -> Iterator[None]:
        """Write a file in pieces that nothing commits, until it is closed."""
        file = os.open(self._directory / "slow", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        written = b""
        while not self._ends.is_set():
            if len(written) < 1 << 20:
                piece = b"%9d\n" % len(written)
                assert os.write(file, piece) == len(piece)
                written += piece
            assert os.pread(file, 1 << 21, 0) == written
            yield
            time.sleep(0.005)
        os.close(file)
        self.acknowledged["slow"] = written
        yield

    def _window(self) -> Iterator[None]:
        """Write in place where a section is a window."""
        file = os.open(self._directory / "w", os.O_RDWR)
        for number in range(1 << 30):
            data = b"%20d" % number
            assert os.pwrite(file, data, 4000) == 20  # over the end of a page
            os.fsync(file)
            self.acknowledged["w"] = data
            assert os.pread(file, 20, 4000) == data
            yield
        os.close(file)

    def _looking(self) -> Iterator[None]:
        """List the directory, which is never another one."""
        while True:
            assert {"a", "w"} <= set(os.listdir(self._directory))
            assert (self._directory / "a").read_bytes() == b"old a"
            yield


@pytest.fixture
def directory(image: Path, tmp_path: Path, runtime: Path) -> Iterator[Path]:
    with blobstore.open(image) as store:
        store.register("w", 8192, "window")
    directory = tmp_path / "mnt"
    directory.mkdir()
    yield directory
    end_owners()  # before the runtime directory ends them
    take_away(directory)
    del runtime


def require_committed(image: Path, acknowledged: dict[str, bytes]) -> None:
    with blobstore.open(image, direct=True) as store:
        assert store.verify()
        for name, data in acknowledged.items():
            if name != "w":
                assert store.get(name) == data, name
        with store.window("w") as window:
            assert window.read(4000, 20) == acknowledged["w"]


@pytest.mark.slow
def test_m60_programs_notice_only_a_pause(image: Path, runtime: Path, directory: Path) -> None:
    owner = OwnerProcess(image, runtime, "--mount", directory)
    with Writing(directory) as writing:
        for _ in range(cases(4, 50)):
            writing.go_on()
            successor = OwnerProcess(image, runtime, "--mount", directory, "--replace")
            assert owner.ended() == 0
            assert b"dropped" not in owner.said, owner.said
            assert b"cannot" not in owner.said, owner.said
            owner = successor
        writing.go_on()
        print(f"longest round: {writing.longest:.3f} s, rounds: {writing.rounds}")
    assert owner.end()[0] == 0
    assert not os.path.ismount(directory)
    require_committed(image, writing.acknowledged)


@pytest.mark.parametrize("point", OF_THE_SUCCESSOR)
def test_m63_a_successor_that_is_killed_leaves_the_directory(
    image: Path, runtime: Path, directory: Path, point: str
) -> None:
    owner = OwnerProcess(image, runtime, "--mount", directory)
    with Writing(directory) as writing:
        writing.go_on()
        program = ("tests.owner.dying", point)
        options = ("--mount", directory, "--replace")
        dead = OwnerProcess(image, runtime, *options, program=program, waits=False)
        assert dead.ended() == -signal.SIGKILL, dead.said
        writing.go_on()
    assert owner.end()[0] == 0
    assert not os.path.ismount(directory)
    require_committed(image, writing.acknowledged)


@pytest.mark.parametrize("point", OF_THE_OWNER)
def test_m63_an_owner_that_is_killed_has_passed_the_directory_on(
    image: Path, runtime: Path, directory: Path, point: str
) -> None:
    program = ("tests.owner.dying", point)
    owner = OwnerProcess(image, runtime, "--mount", directory, program=program)
    with Writing(directory) as writing:
        writing.go_on()
        successor = OwnerProcess(image, runtime, "--mount", directory, "--replace")
        assert owner.ended() == -signal.SIGKILL
        writing.go_on()
    assert successor.end()[0] == 0
    assert not os.path.ismount(directory)
    require_committed(image, writing.acknowledged)


@pytest.mark.slow
def test_m63_sigkill_at_random_instants_loses_nothing_that_was_committed(
    image: Path, runtime: Path, directory: Path
) -> None:
    """Where the process that has the directory is killed, programs see errors, as always."""
    generator = random.Random(60)
    path = directory / "counted"
    owner = OwnerProcess(image, runtime, "--mount", directory)
    committed, takes = 0, 1.0
    for number in range(cases(3, 40)):
        ends = threading.Event()
        saved: list[int] = []
        failed: list[OSError] = []

        def save(
            ends: threading.Event = ends,
            saved: list[int] = saved,
            failed: list[OSError] = failed,
            first: int = committed + 1,
        ) -> None:
            count = first
            while not ends.is_set():
                try:
                    new = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                    os.write(new, b"%d" % count)
                    os.close(new)
                    os.replace(f"{path}.tmp", path)
                except OSError as error:
                    failed.append(error)
                    return
                saved.append(count)
                count += 1

        thread = threading.Thread(target=save)
        thread.start()
        began = time.monotonic()
        successor = OwnerProcess(image, runtime, "--mount", directory, "--replace", waits=False)
        if number:
            time.sleep(generator.uniform(0.6, 1.1) * takes)
            victim, other = generator.choice([(owner, successor), (successor, owner)])
            victim.process.kill()
            victim.ended()
        else:  # how long it takes here
            assert owner.ended() == 0
            takes, other = time.monotonic() - began, successor
        time.sleep(0.3)
        ends.set()
        thread.join(60)
        assert not thread.is_alive()
        if other.process.poll() is None and not failed:
            owner = other
        else:
            other.end(signal.SIGKILL)
            owner = OwnerProcess(image, runtime, "--mount", directory)
        found = int(path.read_bytes())
        last = saved[-1] if saved else committed
        assert last <= found <= last + 1
        committed = found
    owner.run("verify", image)
    assert owner.end()[0] == 0
    assert not os.path.ismount(directory)


def test_m61_what_is_open_means_the_same_in_the_next_process(
    image: Path, runtime: Path, directory: Path
) -> None:
    owner = OwnerProcess(image, runtime, "--mount", directory)
    removed = os.open(directory / "a", os.O_RDWR)
    os.unlink(directory / "a")
    draft = os.open(directory / "draft", os.O_RDWR | os.O_CREAT, 0o604)
    os.write(draft, b"not committed")
    (directory / "x.tmp").write_bytes(b"temporary")
    os.chmod(directory / "w", 0o640)
    os.utime(directory / "w", ns=(10**18, 10**18 + 7))
    mapped = os.open(directory / "mapped", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(mapped, bytes(8192))
    os.fsync(mapped)
    pages = mmap.mmap(mapped, 8192)
    pages[5000:5003] = b"one"
    listing = os.scandir(directory)
    first = next(listing).name
    # A program that wrote, and ends in the next process's time.
    program = (
        "import os, sys\n"
        "os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), b'half')\n"
        "print(1, flush=True)\n"
        "input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, directory / "killed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    successor = OwnerProcess(image, runtime, "--mount", directory, "--replace")
    assert owner.ended() == 0
    assert os.fstat(removed).st_nlink == 0
    assert os.pread(removed, 10, 0) == b"old a"
    assert os.pread(draft, 20, 0) == b"not committed"
    assert (directory / "draft").stat().st_mode & 0o777 == 0o604
    assert (directory / "x.tmp").read_bytes() == b"temporary"
    assert (directory / "w").stat().st_mode & 0o777 == 0o640
    assert (directory / "w").stat().st_mtime_ns == 10**18 + 7
    assert pages[5000:5003] == b"one"
    pages[5003:5006] = b"two"
    pages.flush()
    os.fsync(mapped)
    assert len({first, *(one.name for one in listing)}) == 5
    child.kill()  # it has not closed its file (M15)
    child.communicate()
    with blobstore.open(image) as store:
        assert store.get("mapped")[5000:5006] == b"onetwo"
        assert {one.name for one in store.sections()} == {"b", "w", "mapped"}
        os.close(draft)
        assert store.get("draft") == b"not committed"
    assert not (directory / "killed").exists()
    os.rename(directory / "x.tmp", directory / "x")
    new = os.open(directory / "new", os.O_RDWR | os.O_CREAT)
    assert len({os.fstat(one).st_ino for one in (new, removed, mapped)}) == 3
    for one in (new, removed, mapped):
        os.close(one)
    pages.close()
    assert successor.end()[0] == 0
    with blobstore.open(image, direct=True) as store:
        assert store.get("x") == b"temporary"
