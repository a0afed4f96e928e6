"""Changing UEFI variables as a value (F38, F41, F42)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blobstore import Signatures, UefiVariable, UefiVariables
from formats.errors import ArgumentError, FieldError
from formats.state.uefi.signatures import SHA256, Signature, decode_lists
from tests.uefi.samples import GLOBAL, OTHER, TIME

NOTE = UefiVariable(OTHER, "note", 3, b"note")
EMPTY = UefiVariables(())
HASH = Signatures.of_hash("sha256:" + "01" * 32, OTHER)


def test_f42_variables_are_found_by_name_and_guid() -> None:
    twin = replace(NOTE, guid=GLOBAL, data=b"other")
    variables = UefiVariables((NOTE, twin))
    assert variables[f"note-{OTHER}"] == NOTE
    assert f"note-{OTHER}" in variables
    assert "nothing" not in variables
    assert 7 not in variables
    assert "" not in variables
    assert (len(variables), list(variables)) == (2, [NOTE, twin])
    with pytest.raises(FieldError, match="several"):
        variables["note"]
    with pytest.raises(FieldError, match="no such variable"):
        variables["nothing"]
    assert UefiVariables((NOTE,))["note"] == NOTE
    assert variables.fields() == {
        f"note-{OTHER}": NOTE.data.hex(),
        f"note-{GLOBAL}": b"other".hex(),
    }


def test_f42_variables_are_set_and_deleted() -> None:
    variables = EMPTY.set("Timeout", "5").set(f"note-{OTHER}", b"note", attributes=3)
    assert list(variables) == [UefiVariable(GLOBAL, "Timeout", 7, b"\5\0"), NOTE]
    changed = variables.set("note", "c0ffee").delete("Timeout")
    assert list(changed) == [replace(NOTE, data=b"\xc0\xff\xee")]
    assert list(variables.merge(changed))[1] == changed["note"]
    with pytest.raises(FieldError, match="GUID of a new one"):
        EMPTY.set("note", b"1")
    with pytest.raises(FieldError, match="cannot be empty"):
        EMPTY.set("Timeout", b"")
    with pytest.raises(FieldError, match="no such variable"):
        EMPTY.delete("Timeout")
    assert EMPTY.set("db", b"1")["db"].time is not None  # firmware requires one


def test_f41_boot_entries_are_added_last_and_removed_everywhere() -> None:
    variables = EMPTY
    for number in range(3):
        variables = variables.add_boot_entry(f"Title {number}", "\\EFI\\x.efi")
    variables = variables.set("BootNext", "1").set("BootOrder", "0002,0001,0000,0001")
    assert variables.describe("Boot0001")["value"] == {
        "title": "Title 1",
        "active": True,
        "path": "\\EFI\\x.efi",
    }
    changed = variables.remove_boot_entry("Boot0001")
    assert changed.describe("BootOrder")["value"] == ["0002", "0000"]
    assert "Boot0001" not in changed
    assert "BootNext" not in changed
    assert "Boot0001" in changed.add_boot_entry("again", "\\x")  # the lowest free number
    last = changed.remove_boot_entry("0002").remove_boot_entry("0000")
    assert list(last) == []
    stale = EMPTY.set("BootOrder", "0007").set("BootNext", "3")
    assert list(stale.remove_boot_entry("0007")) == [stale["BootNext"]]
    driver = EMPTY.set("Driver0001", b"1").set("DriverOrder", "0001").set("BootNext", "1")
    assert list(driver.remove_boot_entry("Driver0001")) == [driver["BootNext"]]
    for name in ("Boot0009", "0009"):
        with pytest.raises(FieldError, match="no such boot entry"):
            variables.remove_boot_entry(name)
    for name in ("Boot9", "PlatformRecovery0000", "Timeout", ""):
        with pytest.raises(FieldError, match="not the name of a boot entry"):
            variables.remove_boot_entry(name)


def test_f38_hashes_are_enrolled_and_appended() -> None:
    first = EMPTY.enrol("dbx", HASH)
    assert first["dbx"].attributes == 0x27
    assert first["dbx"].time is not None
    assert decode_lists(first["dbx"].data) == (Signature(SHA256, OTHER, b"\1" * 32),)
    assert first.append("dbx", HASH) == first
    two = UefiVariables((replace(first["dbx"], time=TIME),)).append(
        "dbx", Signatures.of_hash("02" * 32)
    )
    assert two["dbx"].data.startswith(first["dbx"].data)
    assert two["dbx"].time == TIME
    assert len(decode_lists(two["dbx"].data)) == 2
    assert decode_lists(two.enrol("dbx", HASH)["dbx"].data) == HASH.entries
    assert EMPTY.append("dbx", HASH)["dbx"].data == first["dbx"].data
    shim = EMPTY.enrol("MokList", HASH)["MokList"]
    assert (shim.attributes, shim.time) == (3, None)


def test_f38_what_cannot_be_enrolled_is_refused() -> None:
    for name in ("Timeout", f"db-{OTHER}", "nothing"):
        with pytest.raises(ArgumentError, match="does not hold certificates"):
            EMPTY.enrol(name, HASH)
    for operation in (EMPTY.enrol, EMPTY.set("db", b"1").append):
        with pytest.raises(FieldError, match="nothing to enrol"):
            operation("db", Signatures(()))
    with pytest.raises(FieldError, match="exactly one"):
        EMPTY.enrol("PK", Signatures(HASH.entries * 2))
    with pytest.raises(FieldError, match="exactly one"):
        EMPTY.append("PK", Signatures(HASH.entries * 2))
