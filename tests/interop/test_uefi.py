"""UEFI variables through a store: virt-fw-vars reads what we export (F4, F19 to F22)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from formats.errors import ForeignImageError
from formats.state.edk2_varstore import decode_flash
from formats.state.uefi_vars import decode_variables
from tests.qcow2.support import assert_clean, qemu_img
from tests.support.cli import succeeds
from tests.support.foreign import system_file, virt_fw_vars

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

SECRET = b"passphrase of the image"
EMPTY, ENROLLED, CODE = (
    f"/usr/share/OVMF/OVMF_{name}.fd" for name in ("VARS_4M", "VARS_4M.ms", "CODE_4M")
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    blobstore.create(path, {}, SECRET, kdf=luks.Pbkdf2("sha256", 1000)).close()
    (tmp_path / "key").write_bytes(SECRET)
    return path


def variables(path: Path) -> str:
    """Return what virt-fw-vars prints of all variables in a file."""
    return virt_fw_vars("--input", path, "--print", "--verbose", "--hexdump")


@pytest.mark.parametrize("name", [EMPTY, ENROLLED])
def test_f4_f20_a_flash_of_ovmf_survives(tmp_path: Path, image: Path, name: str) -> None:
    source, target = system_file(name), tmp_path / "vars.fd"
    key = ("--key-file", tmp_path / "key")
    succeeds("import", image, source, "--from", "ovmf-vars", *key)
    succeeds("export", image, target, "--to", "ovmf-vars", *key)
    assert target.read_bytes() == source.read_bytes()
    assert variables(target) == variables(source)
    with blobstore.open(image, SECRET, read_only=True, direct=True) as store:
        section = store.section("uefi-variables")
        assert (section.kind, section.max_size) == ("window", 540_672)
        with store.window("uefi-variables") as window:
            assert window.size == 540_672
            assert window.read(0, window.size) == source.read_bytes()
        assert store.verify().ok


@pytest.mark.parametrize("name", [EMPTY, ENROLLED, None])
def test_f24_f25_a_flash_in_qcow2_survives(tmp_path: Path, image: Path, name: str | None) -> None:
    raw, source = tmp_path / "blank.fd", tmp_path / "vars.qcow2"
    if name is None:
        raw.write_bytes(bytes(4 << 20))  # as templates for AArch64 are
    else:
        raw = system_file(name)
    # As Fedora makes its templates.
    qemu_img("convert", "-O", "qcow2", "-o", "cluster_size=4096", "-S", "4096", raw, source)
    qemu_img("snapshot", "-c", "of another time", source)
    key = ("--key-file", tmp_path / "key")
    blank = ("--blank",) if name is None else ()
    succeeds("import", image, source, "--from", "ovmf-vars", *blank, *key)
    raw_again, again = tmp_path / "again.fd", tmp_path / "again.qcow2"
    succeeds("export", image, raw_again, "--to", "ovmf-vars", *key)
    assert raw_again.read_bytes() == raw.read_bytes()
    succeeds("export", image, again, "--to", "ovmf-vars", "--format", "qcow2", *key)
    assert_clean(again)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, again)
    assert again.stat().st_size <= source.stat().st_size
    information = json.loads(qemu_img("info", "--output=json", again))
    assert (information["format"], information["cluster-size"]) == ("qcow2", 4096)


def test_f19_a_flash_that_others_changed_is_one_still(tmp_path: Path) -> None:
    changed = tmp_path / "vars.fd"
    enroll = ("--enroll-generate", "somebody", "--secure-boot")
    virt_fw_vars("--input", system_file(EMPTY), *enroll, "--output", changed)
    assert decode_flash(changed.read_bytes()).authenticated
    assert changed.read_bytes() != system_file(EMPTY).read_bytes()


def test_f19_f20_code_is_not_taken_for_variables() -> None:
    code = system_file(CODE).read_bytes()
    with pytest.raises(ForeignImageError):
        decode_flash(code)
    with pytest.raises(ForeignImageError, match="firmware code"):
        decode_flash(system_file(EMPTY).read_bytes() + code)


@pytest.mark.parametrize("name", [EMPTY, ENROLLED])
def test_f21_the_json_of_qemu_survives(tmp_path: Path, image: Path, name: str) -> None:
    source, target = tmp_path / "vars.json", tmp_path / "back.json"
    more = ("--enroll-generate", "somebody", "--secure-boot") if name == EMPTY else ()
    virt_fw_vars("--input", system_file(name), *more, "--output-json", source)
    key = ("--key-file", tmp_path / "key")
    succeeds("import", image, source, "--from", "uefi-vars", *key)
    succeeds("export", image, target, "--to", "uefi-vars", *key)
    assert target.read_bytes() == source.read_bytes()
    assert variables(target) == variables(source)
    assert "SecureBootEnable" in variables(target)
    decoded = {variable.name: variable for variable in decode_variables(source.read_bytes())}
    listed = json.loads(source.read_text())["variables"]
    assert [variable["name"] for variable in listed] == list(decoded)
    assert all(v["data"] == decoded[v["name"]].data.hex() for v in listed)
    assert decoded["PK"].time is not None
