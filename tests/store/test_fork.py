"""C64: what was opened before a fork is the parent's; in a child it is refused, without waiting."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
import luks
from formats.devices.device import MemoryDevice
from formats.devices.file import FileDevice
from formats.errors import DeviceBusyError, ForkedProcessError
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.opening import open_image
from luks.header.lock import exclusive
from tests.support.stores import image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from blobstore.store.store import Store

SECRET = b"fork test"
QUICK = luks.Pbkdf2("sha256", 1000)
#: Seconds after which a child that hangs is killed.
LIMIT = 20

#: Every use of a store but `close`; the window and transaction are open at the fork.
STORE_USES: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("a"),
    "get previous": lambda store: store.get("a", previous=True),
    "section": lambda store: store.section("a"),
    "sections": lambda store: store.sections(),
    "iteration": list,
    "len": len,
    "in": lambda store: "a" in store,
    "digest": lambda store: store.digest(),
    "info": lambda store: store.info(),
    "regions": lambda store: store.regions(),
    "verify": lambda store: store.verify(),
    "put": lambda store: store.put("a", b"child"),
    "transaction": lambda store: store.transaction().__enter__(),
    "register": lambda store: store.register("new", 10),
    "register again": lambda store: store.register("a", 10),
    "window": lambda store: store.window("other window"),
    "shared window": lambda store: store.shared_window("other window"),
    "changes": lambda store: store.changes(),
    "resize": lambda store: store.resize("a", 1000),
    "rename": lambda store: store.rename("a", "b"),
    "restore": lambda store: store.restore("a"),
    "delete": lambda store: store.delete("a"),
    "grow": lambda store: store.grow(1 << 30),
    "repair": lambda store: store.repair(),
    "compact": lambda store: store.compact(),
    "scrub": lambda store: store.scrub(),
    "release": lambda store: store.release(),
    "take_over": lambda store: store.take_over(),
}

DEVICE_USES: dict[str, Callable[[Any], object]] = {
    "read": lambda device: device.read(0, 1),
    "read outside": lambda device: device.read(1 << 40, 1),
    "write": lambda device: device.write(0, b"x"),
    "flush": lambda device: device.flush(),
    "resize": lambda device: device.resize(1 << 20),
    "discard": lambda device: device.discard(0, 512),
    "reserve": lambda device: device.reserve(0, 512),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with blobstore.create(path, {"a": 100}, SECRET, kdf=QUICK) as store:
        store.put("a", b"zeroth")
        store.put("a", b"first")
        store.register("window", 4096, "window")
        store.register("other window", 4096, "window")
    return path


def in_child(action: Callable[[], object]) -> None:
    """Run ``action`` in a fork of this process, in which nothing may fail or hang."""
    child = os.fork()
    if not child:
        code = 1
        try:
            action()
            code = 0
        except BaseException:  # noqa: BLE001  the parent is told
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + LIMIT
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.002)


def refused(uses: dict[str, Callable[[Any], object]], thing: object) -> None:
    for name, use in uses.items():
        with pytest.raises(ForkedProcessError) as caught:
            use(thing)
        assert caught.value.hint, name
        assert str(os.getpid()) in str(caught.value)
        assert str(os.getppid()) in str(caught.value)


def test_c64_every_use_of_a_store_is_refused_in_a_child(path: Path) -> None:
    with blobstore.open(path, SECRET, direct=True) as store:
        window = store.window("window", idle=600, longest=600)
        window.write(0, b"buffered")
        shared, watch = store.shared_window("other window"), store.changes()
        shared.write(0, b"shared", fua=True)

        def child() -> None:
            refused(STORE_USES, store)
            uses = DEVICE_USES | {"fua": lambda w: w.write(0, b"x", fua=True)}
            del uses["resize"], uses["reserve"]  # which no window can
            for one in (window, shared):
                refused(uses, one)
                one.close()
            refused({"next": next}, watch)
            watch.close()
            store.close()
            refused({"get": STORE_USES["get"]}, store)

        before = path.read_bytes()
        in_child(child)
        assert path.read_bytes() == before
        window.close()
        shared.close()
        store.put("a", b"second")
        assert next(watch).generation > 0
    with blobstore.open(path, SECRET, direct=True) as store:
        assert store.get("a") == b"second"
        assert store.get("window")[:8] == b"buffered"
        assert store.get("other window")[:6] == b"shared"
        assert store.verify().ok


@pytest.mark.parametrize("holder", ["a thread", "the forking thread"])
def test_c64_a_child_does_not_wait_for_a_lock(path: Path, holder: str) -> None:
    """A transaction holds the lock; in the child nobody would ever give it back."""
    with blobstore.open(path, SECRET, direct=True) as store:
        held, end = threading.Event(), threading.Event()

        def hold() -> None:
            with store.transaction() as changes:
                changes.put("a", b"of the thread")
                held.set()
                end.wait()

        def child() -> None:
            refused(STORE_USES, store)
            store.close()

        if holder == "a thread":
            thread = threading.Thread(target=hold)
            thread.start()
            held.wait()
            in_child(child)
            end.set()
            thread.join()
        else:
            with store.transaction() as changes:
                changes.put("a", b"of the thread")
                in_child(child)
        assert store.get("a") == b"of the thread"


def test_c64_a_transaction_does_not_end_twice(path: Path) -> None:
    """A child that leaves the block commits nothing, in whatever way it leaves."""

    def ends(store: Store, changes: blobstore.Transaction) -> None:
        for use in (
            lambda: changes.put("a", b"child"),
            lambda: changes.get("a"),
            lambda: changes.register("b", 10),
            lambda: changes.resize("a", 10),
            lambda: changes.rename("a", "b"),
            lambda: changes.delete("a"),
            changes.commit,
        ):
            with pytest.raises(ForkedProcessError):
                use()
        store.close()

    for device in (None, MemoryDevice(image([spec("a", 100)]))):
        store = open_store(device) if device else blobstore.open(path, SECRET, direct=True)
        is_child = False
        try:
            with store.transaction() as changes:
                changes.put("a", b"both")
                child = os.fork()
                if not child:
                    is_child = True
                    ends(store, changes)
            assert not is_child, "it was committed"
        except ForkedProcessError:
            os._exit(0 if is_child else 1)
        except BaseException:
            if is_child:
                traceback.print_exc()
                os._exit(1)
            raise
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert store.get("a") == b"both"
        store.close()
    with blobstore.open(path, SECRET, direct=True) as store:
        assert store.get("a") == b"both"
        assert store.verify().ok


def test_c64_devices_are_refused_in_a_child(path: Path, tmp_path: Path) -> None:
    raw, qcow2, plain = tmp_path / "raw", tmp_path / "qcow2", tmp_path / "plain"
    raw.write_bytes(bytes(1 << 20))
    plain.write_bytes(bytes(1 << 20))
    qcow2.touch()
    with (
        luks.open(path, SECRET, read_only=False) as volume,
        FileDevice(raw, read_only=False) as file,
        FileDevice(qcow2, read_only=False) as host,
    ):
        create(host, 1 << 20, Qcow2Options())
        memory = MemoryDevice(4 << 20)
        with (
            open_image(host, read_only=False) as disk,
            luks.format(memory, SECRET, kdf=QUICK) as in_memory,
        ):
            disk.write(0, b"parent")

            def child() -> None:
                for device in (volume, file, disk, in_memory):
                    refused(DEVICE_USES, device)
                refused({"extents": lambda _: list(disk.extents())}, disk)
                refused({"reload": lambda _: disk.reload()}, disk)
                refused({"follow_image": lambda _: volume.follow_image()}, volume)
                refused({"over": lambda _: volume.over(memory)}, volume)
                refused({"lock": lambda _: file.lock(), "unlock": lambda _: file.unlock()}, file)
                for device in (volume, file, disk, in_memory):
                    device.close()
                    device.close()
                # The numbers are free again; closing once more must not take them away.
                with FileDevice(plain) as other:
                    file.close()
                    assert other.read(0, 1) == b"\0"

            before = raw.read_bytes(), qcow2.read_bytes(), path.read_bytes()
            in_child(child)
            assert (raw.read_bytes(), qcow2.read_bytes(), path.read_bytes()) == before
            assert disk.read(0, 6) == b"parent"
            file.write(0, b"parent")
            assert in_memory.read(0, 1)
            assert volume.read(0, 1)


@pytest.mark.parametrize("closed", ["closed", "killed"])
def test_c64_a_child_does_not_keep_the_lock(path: Path, closed: str) -> None:
    """OFD locks belong to the open file: a copy of its descriptor would keep them."""
    reading, writing = os.pipe()
    parent = os.fork()
    if not parent:
        os.close(reading)
        store = blobstore.open(path, SECRET, direct=True)
        child = os.fork()
        if not child:
            time.sleep(600)
            os._exit(0)
        os.write(writing, b"%d\n" % child)
        if closed == "closed":
            store.close()
            os.write(writing, b"closed\n")
        time.sleep(600)
    os.close(writing)
    child = 0
    try:
        with os.fdopen(reading) as answers:
            child = int(answers.readline())
            if closed == "closed":
                assert answers.readline() == "closed\n"
            else:
                with pytest.raises(DeviceBusyError):
                    blobstore.open(path, SECRET, direct=True)
                os.kill(parent, signal.SIGKILL)
                os.waitpid(parent, 0)
            with blobstore.open(path, SECRET, direct=True) as store:
                store.put("a", b"another process")
    finally:
        for process in (child, parent):
            if process and (process != parent or closed == "closed"):
                os.kill(process, signal.SIGKILL)
        if closed == "closed":
            os.waitpid(parent, 0)


def test_c64_the_child_has_none_of_the_descriptors(path: Path) -> None:
    def opened() -> list[str]:
        names = []
        for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208  names are all that is wanted
            try:
                names.append(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
            except FileNotFoundError:
                continue
        return names

    with blobstore.open(path, SECRET, direct=True), exclusive(path):
        assert opened().count(str(path)) == 2

        def child() -> None:
            assert str(path) not in opened()

        in_child(child)
        with pytest.raises(DeviceBusyError):
            blobstore.open(path, SECRET, direct=True)


def test_c64_a_number_that_is_somebody_elses_by_now_is_not_closed(path: Path) -> None:
    device = FileDevice(path)
    with (path.parent / "another").open("wb") as another:
        os.close(device._fd)
        os.dup2(another.fileno(), device._fd)
        in_child(lambda: os.fstat(device._fd))
        device.close()


NEW_IMAGE = """
import os, sys
import blobstore
def fill(store):
    store.put("a", b"parent")
    child = os.fork()
    if not child:
        if sys.argv[2] == "exit":
            sys.exit(0)
        return
    os.waitpid(child, 0)
try:
    store = blobstore.create(sys.argv[1], {"a": 100}, encrypted=False, fill=fill)
except blobstore.StorageError as error:
    os._exit(error.exit_code)
assert store.get("a") == b"parent"
store.close()
"""


@pytest.mark.parametrize("how", ["exit", "return"])
def test_c64_a_child_does_not_take_a_new_image_away(tmp_path: Path, how: str) -> None:
    path = tmp_path / "image"
    done = subprocess.run(
        [sys.executable, "-c", NEW_IMAGE, str(path), how],
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert os.listdir(tmp_path) == ["image"]  # noqa: PTH208
    with blobstore.open(path, direct=True) as store:
        assert store.get("a") == b"parent"


ENDINGS = """
import atexit, gc, os, sys, threading
import blobstore
path, how = sys.argv[1:]
store = blobstore.open(path, b"fork test", direct=True)
window = store.window("window", idle=30, longest=60)
window.write(0, b"parent")
before = open(path, "rb").read()
def end():
    global store, window
    if how == "exit":
        sys.exit(0)
    if how == "with":
        with store, window:
            pass
        sys.exit(0)
    if how == "garbage":
        store = window = None
        gc.collect()
        sys.exit(0)
    if how == "atexit":
        atexit.register(store.close)
        sys.exit(0)
    if how == "exception":
        with store:
            raise SystemExit(0)
child = os.fork()
if not child:
    end()
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert status == 0, status
assert open(path, "rb").read() == before
window.flush()
store.put("a", b"parent")
window.close()
store.close()
"""


@pytest.mark.parametrize("how", ["exit", "with", "garbage", "atexit", "exception"])
def test_c64_no_ending_of_a_child_writes(path: Path, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDINGS, str(path), how],
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    with blobstore.open(path, SECRET, direct=True) as store:
        assert store.get("a") == b"parent"
        assert store.get("window")[:6] == b"parent"
        assert store.verify().ok


def test_c64_children_that_are_forked_at_any_moment_get_no_descriptor(path: Path) -> None:
    """A thread opens and closes while another one forks."""
    ended = threading.Event()

    def open_and_close() -> None:
        while not ended.is_set():
            FileDevice(path, read_only=False).close()

    thread = threading.Thread(target=open_and_close)
    thread.start()
    try:
        for _ in range(150):
            child = os.fork()
            if not child:
                names = []
                for fd in range(3, 40):
                    try:
                        names.append(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
                    except OSError:
                        continue
                os._exit(1 if str(path) in names else 0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        ended.set()
        thread.join()


def test_c64_what_belongs_to_a_process_is_not_copied(path: Path) -> None:
    with (
        blobstore.open(path, SECRET, direct=True) as store,
        store.window("window") as window,
        store.shared_window("other window") as shared,
        store.changes() as watch,
        open_store(image([spec("a", 10)])) as in_memory,
        store.transaction() as changes,
    ):
        for thing in (store, window, shared, watch, in_memory, changes):
            for copied in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="open it there"):
                    copied(thing)
    with luks.open(path, SECRET) as volume, pytest.raises(TypeError, match="open it there"):
        pickle.dumps(volume)
    with FileDevice(path) as file, pytest.raises(TypeError, match="open it there"):
        copy.copy(file)
    gc.collect()


def test_c64_a_fork_that_python_is_not_told_of_is_noticed(path: Path) -> None:
    """As a library may do it: the child has the descriptors, but neither the store nor the lock."""
    fork = ctypes.PyDLL(None).fork
    store = blobstore.open(path, SECRET, direct=True)
    reading, writing = os.pipe()
    child = fork()
    if not child:
        code = 1
        try:
            refused(STORE_USES, store)
            store.close()
            code = 0
        finally:
            os.write(writing, bytes([code]))
            time.sleep(600)
            os._exit(code)
    try:
        assert os.read(reading, 1) == b"\0"
        store.put("a", b"second")
        with pytest.raises(DeviceBusyError):
            blobstore.open(path, SECRET, direct=True)
        store.close()
        with blobstore.open(path, SECRET, direct=True) as again:
            assert again.get("a") == b"second"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


# The signal arrives while C code runs, and is handled where the next Python function begins.
SIGNAL_IN_FORK = """
import ctypes, functools, os, signal, sys, threading
path, when = sys.argv[1:]
signals = functools.partial(getattr(ctypes.CDLL(None), "raise"), signal.SIGINT)
if when != "before":  # these run in the order in which they were registered
    os.register_at_fork(**{f"after_in_{when}": signals})
from formats.devices.file import FileDevice
if when == "before":  # and these in the opposite order
    os.register_at_fork(before=signals)
kept = FileDevice(path)
def others_open():
    thread = threading.Thread(target=lambda: FileDevice(path).close(), daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()
sys.unraisablehook = lambda _: None
child = -1
try:
    child = os.fork()
    opened = others_open()
except KeyboardInterrupt:
    opened = others_open()
if child == 0 or os.getpid() != os.getpgrp():
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3, 20)
             if os.path.islink(f"/proc/self/fd/{fd}")]
    os._exit(0 if opened and path not in names else 1)
_, status = os.wait()
os._exit(0 if opened and status == 0 else 1)
"""


@pytest.mark.parametrize("when", ["before", "parent", "child"])
def test_c64_a_signal_in_a_fork_leaves_no_lock_and_no_descriptor(path: Path, when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_IN_FORK, str(path), when],
        capture_output=True,
        timeout=LIMIT,
        check=False,
        process_group=0,
    )
    assert (done.returncode, done.stderr) == (0, b"")
