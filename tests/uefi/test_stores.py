"""Variables in sections and files: one commit, or one file that appears whole (F43)."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.errors import GenerationMismatchError, OutputExistsError, PoisonedStoreError
from blobstore.foreign.variable_stores import (
    edit_variables,
    edit_variables_file,
    holds_variables,
    read_variables,
    read_variables_file,
)
from formats.devices.device import MemoryDevice
from formats.errors import (
    ArgumentError,
    DeviceError,
    FieldError,
    ForeignImageError,
    FormatError,
)
from tests.qcow2.support import qemu_img
from tests.support.devices import FaultyDevice, RecordingDevice, crash_states
from tests.support.interrupts import InterruptPoints, collecting_what_is_new
from tests.support.stores import image, open_store, spec
from tests.uefi.samples import SIZE, flash, record

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore import AnyStore, UefiVariables

OLD = flash(record("Timeout", b"\1\0"))
NEW = flash(record("Timeout", b"\2\0"))
TORN = flash(record("Timeout", b"\1\0"), b"\xaa\x55\xff\xff")
#: A small one for the sweeps, as QEMU's JSON: what is committed does not matter to them.
JSON = (
    b'{"version": 2, "variables": [{"guid": "8be4df61-93ca-11d2-aa0d-00e098032b8c",'
    b' "name": "Timeout", "attr": 7, "data": "0100"}]}'
)


def two(variables: UefiVariables) -> UefiVariables:
    return variables.set("Timeout", "2")


def same(variables: UefiVariables) -> UefiVariables:
    return variables


def store_with(content: bytes, name: str = "v") -> AnyStore:
    return open_store(RecordingDevice(image([spec(name, len(content), content)], block_size=4096)))


def test_f43_a_section_is_changed_by_one_commit_or_none() -> None:
    store = store_with(OLD)
    generation = store.section("v").generation
    assert edit_variables(store, "v", same)["Timeout"].data == b"\1\0"
    with pytest.raises(FieldError):
        edit_variables(store, "v", lambda variables: variables.delete("nothing"))
    assert store.section("v").generation == generation
    after = edit_variables(store, "v", two)
    assert (after["Timeout"].data, store.get("v")) == (b"\2\0", NEW)
    assert store.section("v").generation == generation + 1
    assert read_variables(store, "v") == after


def test_f43_a_change_by_others_meanwhile_is_not_overwritten() -> None:
    store = store_with(OLD)

    def change(variables: UefiVariables) -> UefiVariables:
        store.put("v", flash(record("Timeout", b"\7\0")))
        return variables.set("Timeout", "2")

    with pytest.raises(GenerationMismatchError):
        edit_variables(store, "v", change)
    assert read_variables(store, "v")["Timeout"].data == b"\7\0"


def test_f43_a_window_that_a_machine_uses_is_not_changed(tmp_path: Path) -> None:
    with blobstore.create(tmp_path / "image", {}, encrypted=False, free=1 << 20) as store:
        store.register("v", SIZE, "window")
        store.put("v", OLD)
        assert holds_variables(store, "v")
        with store.window("v"), pytest.raises(ValueError, match="open window"):
            edit_variables(store, "v", two)
        edit_variables(store, "v", two)
        assert store.get("v") == NEW


def test_f39_f43_a_section_is_repaired_by_one_commit() -> None:
    store = store_with(TORN)
    assert [problem.rule for problem in read_variables(store, "v").problems] == ["F32"]
    after = edit_variables(store, "v", same, repair=True)
    assert [problem.rule for problem in after.problems] == ["F32"]
    assert store.get("v") == OLD
    lost = store_with(bytes(100) + OLD[100:])
    with pytest.raises(ForeignImageError) as raised:
        read_variables(lost, "v")
    assert "--repair" in str(raised.value.hint)
    assert edit_variables(lost, "v", two, repair=True).problems
    assert lost.get("v") == NEW


def test_f43_an_edit_does_not_lose_what_a_repair_could_rescue() -> None:
    damaged = flash(record("Timeout", b"\1\0"), bytes(8), record("Lang", b"en\0"))
    store = store_with(damaged)
    with pytest.raises(FormatError, match=r"followed by something else.*F31") as raised:
        edit_variables(store, "v", two)
    assert "--repair" in str(raised.value.hint)
    assert store.get("v") == damaged
    after = edit_variables(store, "v", two, repair=True)
    assert [one.name for one in after] == ["Timeout", "Lang"]
    unfinished = store_with(TORN)
    edit_variables(unfinished, "v", two)  # nothing is lost with what was never finished
    assert unfinished.get("v") == NEW


def test_f43_the_type_of_a_section_says_how_it_is_read() -> None:
    store = store_with(JSON)
    assert not holds_variables(store, "v")
    assert holds_variables(store, "v", "uefi-vars")
    assert not holds_variables(store, "v", "ipmi-fru")
    with pytest.raises(ForeignImageError):
        read_variables(store, "v")
    assert edit_variables(store, "v", same, type_="uefi-vars").capacity is None
    assert store.get("v") == JSON
    with pytest.raises(ArgumentError, match="not in ipmi-fru"):
        read_variables(store, "v", type_="ipmi-fru")
    with pytest.raises(ArgumentError, match="only a flash"):
        edit_variables(store, "v", same, type_="uefi-vars", repair=True)


def test_f43_files_are_written_whole_in_the_form_they_have(tmp_path: Path) -> None:
    raw, qcow2, new = (tmp_path / name for name in ("raw", "qcow2", "new"))
    raw.write_bytes(OLD)
    qemu_img("convert", "-O", "qcow2", raw, qcow2)
    for source in (raw, qcow2):
        before = source.read_bytes()
        edit_variables_file(source, new, two, overwrite=True)
        assert read_variables_file(new)["Timeout"].data == b"\2\0"
        assert new.read_bytes()[:4] == before[:4]
        assert source.read_bytes() == before
    with pytest.raises(OutputExistsError):
        edit_variables_file(raw, new, two)
    with pytest.raises(FieldError):
        edit_variables_file(raw, tmp_path / "none", lambda v: v.delete("nothing"))
    assert not (tmp_path / "none").exists()
    raw.write_bytes(JSON)
    edit_variables_file(raw, new, two, type_="uefi-vars", overwrite=True)
    assert read_variables_file(new, "uefi-vars")["Timeout"].data == b"\2\0"


def test_f43_a_flash_is_exported_as_json(tmp_path: Path) -> None:
    store = store_with(OLD)
    blobstore.export_state(store, tmp_path / "json", "uefi-vars", name="v")
    assert read_variables_file(tmp_path / "json", "uefi-vars").variables == (
        read_variables(store, "v").variables
    )
    with pytest.raises(FormatError):
        blobstore.export_state(store_with(bytes(100)), tmp_path / "none", "uefi-vars", name="v")


def timeout(store: AnyStore) -> bytes:
    return read_variables(store, "v", type_="uefi-vars")["Timeout"].data


BEFORE = image([spec("v", 1 << 12, JSON)])


def edit_json(store: AnyStore) -> None:
    edit_variables(store, "v", two, type_="uefi-vars")


def test_f43_every_crash_leaves_the_old_variables_or_the_new() -> None:
    device = RecordingDevice(BEFORE)
    edit_json(open_store(device))
    device.mark("done")
    found = set()
    for crash in crash_states(BEFORE, device.log, exhaustive=6, samples=20):
        value = timeout(open_store(crash.content, read_only=True))
        assert value == b"\2\0" or (value == b"\1\0" and "done" not in crash.marks)
        found.add(value)
    assert found == {b"\1\0", b"\2\0"}


@pytest.mark.parametrize("operation", ["read", "write", "flush"])
def test_f43_a_failing_device_leaves_the_old_variables_or_the_new(operation: str) -> None:
    whole = FaultyDevice(MemoryDevice(BEFORE), operation, 1 << 30)  # type: ignore[arg-type]
    store = open_store(whole)
    whole.arm(1 << 30)
    edit_json(store)
    total = whole.counts[operation]  # type: ignore[index]
    assert total > 0
    for number in range(1, total + 1):
        memory = MemoryDevice(BEFORE)
        persistent = operation != "read"  # a store repeats a write that failed once
        device = FaultyDevice(memory, operation, 1 << 30, persistent=persistent)  # type: ignore[arg-type]
        store = open_store(device)
        device.arm(number)
        with pytest.raises(DeviceError):
            edit_json(store)
        assert timeout(open_store(bytes(memory.content))) in (b"\1\0", b"\2\0")
        device.arm(1 << 30)
        try:
            edit_json(store)
        except PoisonedStoreError:
            edit_json(open_store(memory))
        assert timeout(open_store(bytes(memory.content))) == b"\2\0"


def test_f43_an_interrupt_leaves_the_old_variables_or_the_new() -> None:
    edit_json(open_store(MemoryDevice(BEFORE)))  # what is imported late is there then
    points = InterruptPoints(lambda: edit_json(open_store(MemoryDevice(BEFORE))))
    found = set()
    with collecting_what_is_new():
        for point in points.chosen(40) + points.chosen(60, points.total - 600):
            memory = MemoryDevice(BEFORE)
            # It is hidden where it arrives while an object is finalized.
            with suppress(KeyboardInterrupt), points.interrupted_at(point):
                edit_json(open_store(memory))
            gc.collect()
            value = timeout(open_store(bytes(memory.content)))
            assert value in (b"\1\0", b"\2\0")
            found.add(value)
    assert found == {b"\1\0", b"\2\0"}
