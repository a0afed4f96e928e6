"""OVMF starts from what is edited and repaired, and finds it (F33, F35, F36, F38, F39)."""

from __future__ import annotations

import lzma
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore import Signatures, UefiVariables
from formats.errors import FormatError
from formats.state.uefi.boot import entry_number
from formats.state.uefi.flash import read_store, repair_store
from formats.state.uefi.names import GLOBAL, SECURITY
from tests.owner.guest import build_lister
from tests.support.devices import RecordingDevice, Write
from tests.support.foreign import run, system_file
from tests.uefi.machine import VARS, started_variables
from tests.uefi.samples import OTHER
from tests.uefi.test_keys import Keys, make_keys

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable

    from tests.uefi.machine import Found

pytestmark = [pytest.mark.interop, pytest.mark.slow]

DATA = Path(__file__).with_name("data")
NOTE = f"note-{OTHER}"
_THOROUGH = bool(os.environ.get("BLOBSTORE_THOROUGH"))
#: Variables that OVMF itself sets at a start.
SET_BY_FIRMWARE = {"MTC", "Timeout", "ConIn", "ConOut", "ErrOut", "BootOrder", "Boot0000"}


@pytest.fixture(scope="module")
def lister(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_lister(tmp_path_factory.mktemp("guest"))


def enrolled(variables: UefiVariables, keys: Keys) -> UefiVariables:
    for name in ("PK", "KEK", "db"):
        certificate = Signatures.decode(keys.pem(name).read_bytes(), OTHER)
        variables = variables.enrol(name, certificate)
    return variables.set("SecureBootEnable", "true")


def test_f33_f38_f41_ovmf_finds_what_was_set_and_secure_boot_is_in_force(
    tmp_path: Path, lister: Path
) -> None:
    keys = make_keys(tmp_path)
    signed, flash, forbidden = (tmp_path / name for name in ("signed.efi", "vars.fd", "dbx.fd"))
    run("sbsign", "--key", keys.key("db"), "--cert", keys.pem("db"), "--output", signed, lister)
    with blobstore.create(tmp_path / "image", {}, encrypted=False, free=2 << 20) as store:
        blobstore.import_state(store, system_file(VARS), "ovmf-vars")

        def change(variables: UefiVariables) -> UefiVariables:
            variables = enrolled(variables, keys).set(NOTE, b"n" * 3000, attributes=7)
            return variables.add_boot_entry("of a test", "\\EFI\\test.efi")

        blobstore.edit_variables(store, "uefi-variables", change)
        blobstore.export_state(store, flash, "ovmf-vars")
    unsigned = shutil.copy(flash, tmp_path / "unsigned.fd")
    found, said = started_variables(flash, signed, secure=True)
    assert found is not None, said
    assert found[OTHER, "note"] == (7, b"n" * 3000)
    assert found[GLOBAL, "SecureBoot"][1] == b"\1"
    assert found[GLOBAL, "SetupMode"][1] == b"\0"
    assert found[SECURITY, "db"] == (0x27, keys.lists("db").read_bytes())

    after = blobstore.read_variables_file(flash)
    assert after.problems == ()
    for variable in after:  # what firmware wrote is read as firmware reads it
        assert found[variable.key][1] == variable.data
    mine = entry_named(after, "of a test")
    assert mine.removeprefix("Boot") in after.describe("BootOrder")["value"]

    lists = Signatures.decode(keys.lists("db").read_bytes())
    blobstore.edit_variables_file(flash, forbidden, lambda v: v.append("dbx", lists))
    found, said = started_variables(forbidden, signed, secure=True)
    assert found is None, said
    told = re.findall(rb'start (Boot\w{4}) "[^"]+" from (.+): Security Violation', said)
    assert told  # device paths, in the words of OVMF
    refusing = blobstore.read_variables_file(forbidden)
    for name, path in told:
        assert refusing.describe(name.decode())["value"]["path"] == path.decode()
    if _THOROUGH:
        found, said = started_variables(unsigned, lister, secure=True)
        assert found is None, said
        without = tmp_path / "without.fd"
        blobstore.edit_variables_file(
            flash, without, lambda v: v.remove_boot_entry(mine).delete(NOTE)
        )
        found, said = started_variables(without, signed, secure=True)
        assert found is not None, said
        assert (OTHER, "note") not in found
        last = blobstore.read_variables_file(without)
        assert "of a test" not in [last.describe(name)["value"]["title"] for name in entries(last)]


def entries(variables: UefiVariables) -> list[str]:
    return [one.name for one in variables if entry_number(one.name) and one.guid == GLOBAL]


def entry_named(variables: UefiVariables, title: str) -> str:
    return next(
        name for name in entries(variables) if variables.describe(name)["value"]["title"] == title
    )


def recorded_start(directory: Path, lister: Path) -> tuple[bytes, list[Write]]:
    """Start OVMF for the first time on a recording device; return what it wrote."""
    device = RecordingDevice(system_file(VARS).read_bytes())
    socket = directory / "s"
    exported = blobstore.NbdDevice("vars", device, writable=True)
    with blobstore.NbdServer(socket, exported):
        address = f"nbd+unix:///vars?socket={socket}"
        found, _ = started_variables(address, lister)
    assert found is not None
    return device.before, device.writes


def test_f31_f32_f39_each_cut_of_what_ovmf_writes_is_read_and_repaired(
    tmp_path: Path, lister: Path
) -> None:
    before, writes = recorded_start(tmp_path, lister)
    assert len(writes) > 10_000
    content, step = bytearray(before), 7 if _THOROUGH else 101
    done: set[tuple[uuid.UUID, str]] = set()
    torn = None
    for number, write in enumerate(writes, 1):
        content[write.offset : write.offset + len(write.data)] = write.data
        if number % step:
            continue
        store = read_store(content)
        result, rescued = repair_store(content)
        assert rescued.variables == store.variables
        assert read_store(result).flaws == ()
        names = {one.key for one in store.variables}
        assert done <= names  # what was there stays: firmware deletes nothing at this start
        done = names
        if any(flaw.rule == "F32" for flaw in store.flaws):
            torn = bytes(content)
    assert torn is not None
    assert read_store(content).flaws == ()
    if _THOROUGH:
        _starts_repaired(torn, tmp_path / "torn.fd", lister)
    lost = b"\xff" * 4096 + bytes(content)[4096:]
    with pytest.raises(FormatError):
        read_store(lost)
    _starts_repaired(lost, tmp_path / "lost.fd", lister)


def test_f35_f36_ovmf_does_not_undo_an_edit_of_an_unfinished_write(
    tmp_path: Path, lister: Path
) -> None:
    """OVMF 2022.11 was cut at write 400,000 of 798,119, while it compacted a store."""
    torn, changed = tmp_path / "torn.fd", tmp_path / "changed.fd"
    torn.write_bytes(lzma.decompress(DATA.joinpath("compacting.fd.xz").read_bytes()))
    before = blobstore.read_variables_file(torn)
    assert [problem.rule for problem in before.problems] == ["F35"]
    assert len(before) == 26
    after = blobstore.edit_variables_file(torn, changed, lambda v: v.set(NOTE, b"new"))
    assert after.problems == ()
    assert after.variables[:-1] == before.variables
    found, said = started_variables(changed, lister)
    assert found is not None, said
    assert found[OTHER, "note"] == (7, b"new")
    _check_found(found, after)


def _starts_repaired(content: bytes, flash: Path, lister: Path) -> None:
    result, store = repair_store(content)
    assert store.flaws
    flash.write_bytes(result)
    found, said = started_variables(flash, lister)
    assert found is not None, said
    _check_found(found, store.variables)


def _check_found(found: Found, variables: Iterable[blobstore.UefiVariable]) -> None:
    for variable in variables:
        if variable.name not in SET_BY_FIRMWARE:
            assert found[variable.key][1] == variable.data, variable.name
