"""virt-fw-vars reads what is written here, and what it writes is read (F30 to F43)."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore import Signatures, UefiVariable, UefiVariables
from formats.state.uefi.flash import read_store, repair_store, write_store
from formats.state.uefi_vars import decode_variables
from tests.support.foreign import system_file, virt_fw_vars
from tests.uefi.machine import ENROLLED, VARS
from tests.uefi.test_keys import Keys, make_keys

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

OWNER = "4f4d5a02-9c11-4a1f-8e77-0d52e3a0a6b1"
AAVMF = "/usr/share/AAVMF/AAVMF_VARS.ms.fd"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


def listed(file: Path) -> dict[str, str]:
    """Return what virt-fw-vars says of each variable."""
    said = virt_fw_vars("--input", file, "--print", "--verbose", "--hexdump")
    return dict(re.findall(r"^name=(.*?) guid=(.*(?:\n .*)*)", said, re.MULTILINE))


@pytest.mark.parametrize("template", [VARS, ENROLLED, AAVMF])
def test_virt_fw_vars_reads_what_is_edited(tmp_path: Path, keys: Keys, template: str) -> None:
    changed, again = tmp_path / "changed.fd", tmp_path / "again.fd"
    source = system_file(template)

    def change(variables: UefiVariables) -> UefiVariables:
        certificate = Signatures.decode(keys.pem("db").read_bytes())
        variables = variables.set("Timeout", "7").set("SecureBootEnable", "true")
        variables = variables.append("db", certificate).enrol("MokList", certificate)
        variables = variables.append("dbx", Signatures.of_hash("0b" * 32))
        return variables.add_boot_entry("Titel für alle", "\\EFI\\x.efi")

    after = blobstore.edit_variables_file(source, changed, change)
    assert blobstore.read_variables_file(changed) == after
    before, said = listed(source), listed(changed)
    assert said.keys() == {one.name for one in after}
    assert before.keys() <= said.keys()
    touched = {"Timeout", "SecureBootEnable", "db", "dbx", "BootOrder"}
    assert all(said[name] == before[name] for name in before.keys() - touched)
    assert "0x0007" in said["Timeout"]
    assert "CN=test db" in said["db"]
    assert "CN=test db" in said["MokList"]
    assert "0b" * 32 in said["dbx"].replace(" ", "") or "count=" in said["dbx"]
    entry = next(name for name, text in said.items() if "Titel für alle" in text)
    assert "\\EFI\\x.efi" in said[entry]
    assert entry.removeprefix("Boot") in said["BootOrder"]

    if template == AAVMF:  # 64 MiB
        return
    # What it writes of that is the same for us, whatever order it has.
    virt_fw_vars("--input", changed, "--output", again)
    rewritten = blobstore.read_variables_file(again)
    assert sorted(rewritten.variables, key=str) == sorted(after.variables, key=str)
    assert rewritten.problems == ()


def test_what_virt_fw_vars_enrols_is_read(tmp_path: Path, keys: Keys) -> None:
    target, ours = tmp_path / "theirs.fd", tmp_path / "ours.fd"
    options = [("--set-pk", "PK"), ("--add-kek", "KEK"), ("--add-db", "db")]
    enrol = [part for option, name in options for part in (option, OWNER, keys.pem(name))]
    more = ("--add-dbx-hash", OWNER, "0b" * 32, "--secure-boot")
    boot = ("--append-boot-filepath", "\\EFI\\x.efi")
    virt_fw_vars("--input", system_file(VARS), *enrol, *more, *boot, "--output", target)
    found = blobstore.read_variables_file(target)
    assert found.problems == ()
    assert found.describe("SecureBootEnable")["value"] is True
    assert found.describe("BootOrder")["value"] == ["0000"]
    assert found.describe("Boot0000")["value"]["path"] == "\\EFI\\x.efi"
    assert found.describe("dbx")["value"] == [{"kind": "sha256", "owner": OWNER, "hash": "0b" * 32}]

    def same(variables: UefiVariables) -> UefiVariables:
        owner = uuid.UUID(OWNER)
        for _, name in options:
            entry = Signatures.decode(keys.pem(name).read_bytes(), owner)
            variables = variables.enrol(name, entry)
        return variables.enrol("dbx", Signatures.of_hash("0b" * 32, owner))

    blobstore.edit_variables_file(system_file(VARS), ours, same)
    made = blobstore.read_variables_file(ours)
    for name in ("PK", "KEK", "db", "dbx"):
        assert (made[name].data, made[name].attributes) == (found[name].data, 0x27)
        assert found[name].attributes == 0x27


def test_a_repaired_flash_is_one_for_virt_fw_vars(tmp_path: Path) -> None:
    whole = system_file(ENROLLED).read_bytes()
    before = {one.key for one in read_store(whole).variables}
    for number, (at, size) in enumerate([(0, 512), (0, 4096), (8192, 512), (0x41000, 4096)]):
        content, store = repair_store(whole[:at] + bytes(size) + whole[at + size :])
        target = tmp_path / f"{number}.fd"
        target.write_bytes(content)
        assert listed(target).keys() == {one.name for one in store.variables}
        assert {one.key for one in store.variables} <= before


@pytest.mark.parametrize("template", [VARS, AAVMF])
def test_f39_headers_made_again_are_those_of_the_build(template: str) -> None:
    whole = system_file(template).read_bytes()
    variables = (*read_store(whole).variables, UefiVariable(uuid.UUID(OWNER), "note", 7, b"1"))
    whole = write_store(whole, variables)
    assert repair_store(bytes(100) + whole[100:])[0] == whole


def test_f43_json_goes_in_and_out(tmp_path: Path) -> None:
    theirs, ours, target = (tmp_path / name for name in ("theirs", "ours", "target.fd"))
    virt_fw_vars("--input", system_file(ENROLLED), "--output-json", theirs)
    variables = decode_variables(theirs.read_bytes())
    blobstore.edit_variables_file(system_file(VARS), target, lambda v: v.merge(variables))
    assert listed(target) == listed(system_file(ENROLLED))
    with blobstore.create(tmp_path / "image", {}, encrypted=False, free=1 << 20) as store:
        blobstore.import_state(store, target, "ovmf-vars")
        blobstore.export_state(store, ours, "uefi-vars", name="uefi-variables")
    again = tmp_path / "again.fd"
    virt_fw_vars("--input", system_file(VARS), "--set-json", ours, "--output", again)
    assert listed(again) == listed(system_file(ENROLLED))
