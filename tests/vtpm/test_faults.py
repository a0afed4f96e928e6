"""Storage fails under a running TPM, or crashes: V3, V10, V11, V12 and V16.

libtpms has one TPM in a process (V2), so each case is a process: this module, forked
by itself.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from blobstore.errors import CorruptBlobError
from blobstore.vtpm.behaviour import Behaviour
from blobstore.vtpm.commands import Command
from blobstore.vtpm.libtpms import Libtpms, Result
from blobstore.vtpm.nvram import StoreNvram
from blobstore.vtpm.tpm import Tpm
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError, StorageError
from formats.state.swtpm import Slot, TpmVersion
from tests.support.devices import FaultyDevice, RecordingDevice, crash_states
from tests.support.stores import image as store_image
from tests.support.stores import open_store
from tests.vtpm import commands
from tests.vtpm.support import environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.devices.device import BlockDevice

INDEX, SIZE = 0x1500016, 16
WRITES = 6
STATE = store_image(free=2 << 20)


def in_a_process(function: Callable[[], object]) -> Any:
    """Run a function in a child of this process; return what it returned, as JSON has it."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                json.dump(function(), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, said
    return json.loads(said)


def alone(name: str) -> Any:
    """Run a function of this module in a fresh interpreter, where it may fork."""
    code = f"from tests.vtpm import test_faults as t; import json; print(json.dumps(t.{name}()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def content(number: int) -> bytes:
    return number.to_bytes(SIZE, "big")


def send(tpm: Tpm, command: bytes) -> bytes:
    return tpm.execute(Command(command))


def started(device: BlockDevice) -> Tpm:
    tpm = Tpm(StoreNvram(open_store(device)), behaviour=Behaviour(auto_shutdown=False))
    assert tpm.start() == 0
    assert commands.code_of(send(tpm, commands.STARTUP)) == 0
    return tpm


def prepared() -> bytes:
    """Return an image with a TPM that has an NV index."""

    def make() -> str:
        memory = MemoryDevice(STATE)
        tpm = started(memory)
        assert commands.code_of(send(tpm, commands.nv_define(INDEX, SIZE))) == 0
        assert commands.code_of(send(tpm, commands.nv_write(INDEX, content(0)))) == 0
        return bytes(memory.content).hex()

    return bytes.fromhex(in_a_process(make))


def value_in(image: bytes) -> int:
    """Start a TPM from an image and return what its index holds."""

    def read() -> int:
        tpm = started(MemoryDevice(image))
        return int.from_bytes(commands.data_of(send(tpm, commands.nv_read(INDEX, SIZE))), "big")

    return int(in_a_process(read))


# ------------------------------------------------------------------ faults


@dataclass(frozen=True)
class Ended:
    """How a run with a fault ended: the values acknowledged, the code after them, the image."""

    acknowledged: int
    code: int
    later: int
    image: bytes


def run_with_fault(image: bytes, operation: Any, number: int, *, persistent: bool) -> Ended:
    def write() -> object:
        memory = MemoryDevice(image)
        device = FaultyDevice(memory, operation, 1 << 30, persistent=persistent)
        tpm = started(device)
        device._number = device.counts[device._operation] + number
        acknowledged = code = 0
        for value in range(1, WRITES + 1):
            code = commands.code_of(send(tpm, commands.nv_write(INDEX, content(value))))
            if code:
                break
            acknowledged = value
        later = commands.code_of(send(tpm, commands.nv_write(INDEX, content(99))))
        return acknowledged, code, later, bytes(memory.content).hex()

    acknowledged, code, later, content_ = in_a_process(write)
    return Ended(acknowledged, code, later, bytes.fromhex(content_))


def faults() -> list[list[Any]]:
    """Fail each write and each flush, once and for good; return what happened."""
    image = prepared()
    seen = []
    for operation in ("write", "flush"):
        for persistent in (False, True):
            for number in range(1, WRITES + 1):
                end = run_with_fault(image, operation, number, persistent=persistent)
                found = value_in(end.image)
                seen.append(
                    [operation, persistent, number, end.acknowledged, end.code, end.later, found]
                )
    return seen


def test_v11_a_failing_store_is_repeated_and_then_reported() -> None:
    for operation, persistent, number, acknowledged, code, later, found in alone("faults"):
        case = (operation, persistent, number)
        if not persistent:  # the store wrote the same bytes again
            assert (acknowledged, code, later) == (WRITES, 0, 0), case
            assert found == 99, case
        else:  # nothing half done is acknowledged, and nothing after it
            assert acknowledged == number - 1, case
            assert (code, later) == (0x101, 0x101), case
            assert found in (acknowledged, acknowledged + 1), case


# ----------------------------------------------------------------- crashes


def crashes() -> list[list[int]]:
    """Write values on a disk that crashes; return what was acknowledged, and what is there."""
    image = prepared()

    def write() -> list[Any]:
        device = RecordingDevice(image)
        tpm = started(device)
        device.log.clear()
        device.before = device.content
        for value in range(1, 4):
            assert commands.code_of(send(tpm, commands.nv_write(INDEX, content(value)))) == 0
            device.mark(value)
        states = crash_states(device.before, device.log, exhaustive=4, samples=24)
        unique = {state.content: len(state.marks) for state in states}
        return [[marks, state.hex()] for state, marks in unique.items()]

    return [[marks, value_in(bytes.fromhex(state))] for marks, state in in_a_process(write)]


@pytest.mark.slow
def test_v16_a_crash_at_any_instant_leaves_what_was_acknowledged() -> None:
    seen = alone("crashes")
    assert len(seen) > 12
    assert {marks for marks, _ in seen} == {0, 1, 2, 3}
    for marks, found in seen:
        assert found in (marks, marks + 1)


# --------------------------------------------------------------- callbacks


class Scripted:
    """Storage in memory that fails as told."""

    def __init__(self) -> None:
        self.states: dict[Slot, bytes] = {}
        self.error: BaseException | None = None
        self.stores = 0

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def load(self, slot: Slot) -> bytes | None:
        self._fail()
        return self.states.get(slot)

    def store(self, slot: Slot, data: bytes) -> None:
        self._fail()
        self.stores += 1
        self.states[slot] = data

    def delete(self, slot: Slot) -> None:
        self._fail()
        self.states.pop(slot, None)


def callbacks() -> dict[str, Any]:
    """Let callbacks fail in every way."""
    seen: dict[str, Any] = {}
    nvram = Scripted()
    library = Libtpms(TpmVersion.TPM_2, nvram, lambda: 0)
    try:
        Libtpms(TpmVersion.TPM_2, nvram, lambda: 0)
    except ValueError as error:
        seen["second"] = str(error)
    assert library.start() == 0
    first = library.process(commands.STARTUP)[1]
    gc.collect()
    kept = first.hex()
    library.process(commands.get_random(32))
    seen["response-is-a-copy"] = first.hex() == kept
    library.process(commands.nv_define(INDEX, SIZE))
    permanent = nvram.states[Slot.PERMANENT]
    # An error of storage: the command fails, and so does all that follows.
    nvram.error = DeviceError("injected")
    result, response = library.process(commands.nv_write(INDEX, content(1)))
    seen["failed-store"] = [result, commands.code_of(response), str(library.failed)]
    nvram.error = None
    seen["failure-mode"] = commands.code_of(library.process(commands.get_random(4))[1])
    library.stop()
    # Any error while loading: no start, no new TPM, nothing stored.
    stores = nvram.stores
    reasons: dict[str, StorageError] = {
        "damage": CorruptBlobError("injected"),
        "device": DeviceError("injected"),
    }
    for name, reason in reasons.items():
        nvram.error = reason
        result = library.start()
        was_told = library.failed is reason
        code = commands.code_of(library.process(commands.STARTUP)[1])
        seen[f"load-{name}"] = [result, code, was_told]
        library.stop()
    seen["stores-while-failing"] = nvram.stores - stores
    # Not an error of storage, but a mistake: it is not swallowed.
    nvram.error = RuntimeError("a mistake")
    try:
        library.start()
    except RuntimeError as error:
        seen["mistake"] = str(error)
    library.stop()
    nvram.error = None
    seen["unchanged"] = nvram.states[Slot.PERMANENT] == permanent
    assert library.start() == 0
    seen["again"] = commands.code_of(library.process(commands.STARTUP)[1])
    # A state far above what TPM_Malloc gives: refused or not, it is not too large.
    library.stop()
    nvram.states[Slot.PERMANENT] = permanent + bytes(200_000)  # libtpms ignores what follows
    seen["large"] = library.start()
    return seen


def test_v2_v3_v11_v12_callbacks_that_fail() -> None:
    seen = alone("callbacks")
    assert "one TPM in a process" in seen.pop("second")
    result, code, failed = seen.pop("failed-store")
    assert (result, code) == (0, 0x101)
    assert failed == "injected"
    assert seen == {
        "response-is-a-copy": True,
        "failure-mode": 0x101,
        "load-damage": [0x101, 0x101, True],
        "load-device": [0x101, 0x101, True],
        "stores-while-failing": 0,
        "mistake": "a mistake",
        "unchanged": True,
        "again": 0,
        "large": 0,
    }


def unreadable() -> list[Any]:
    """Fail each read of an image with a TPM, while the TPM is taken out and started."""
    image = prepared()
    seen = []
    for number in range(1, 200):

        def start(number: int = number) -> object:
            memory = MemoryDevice(image)
            device = FaultyDevice(memory, "read", number)
            try:
                tpm = Tpm(StoreNvram(open_store(device)))
                result = tpm.start()
            except StorageError as error:
                return [type(error).__name__, device.failed, bytes(memory.content).hex()]
            return [result, device.failed, bytes(memory.content).hex()]

        result, failed, content_ = in_a_process(start)
        seen.append([result, value_in(bytes.fromhex(content_))])
        if not failed:
            break
    return seen


def test_v10_an_image_that_cannot_be_read_is_never_a_new_tpm() -> None:
    seen = alone("unreadable")
    results, values = zip(*seen, strict=True)
    assert set(values) == {0}  # the TPM that was there is there
    assert results[-1] == Result.SUCCESS
    # It starts where the other copy of a header said the same, or a head was read at the second
    # attempt (C67), and else says why not.
    assert set(results) == {Result.SUCCESS, "DeviceError"}
