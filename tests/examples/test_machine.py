"""The example machine's files are what its README says, by the word of the programs themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.foreign import (
    ForeignProgramError,
    MissingProgramError,
    fw_printenv,
    lspci_vpd,
    program,
    swtpm_nv_read,
    swtpm_persistent_handles,
)

MACHINE = Path(__file__).resolve().parents[2] / "examples" / "machine"

NV_INDEX = 0x1500016
NV_TEXT = b"blobstore ships a throw-away TPM"
PRIMARY_KEY = 0x81000001

pytestmark = pytest.mark.interop


def shipped(name: str) -> bytes:
    return MACHINE.joinpath(name).read_bytes()


def altered(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three files, made again."""
    for name in ("swtpm", "tpm2", "mkenvimage"):
        program(name)
    directory = tmp_path_factory.mktemp("machine")
    subprocess.run([sys.executable, MACHINE / "generate.py", directory], check=True)
    return directory


def test_swtpm_reads_text_and_key_in_shipped_state() -> None:
    state = shipped("tpm2-permall.bin")
    assert swtpm_nv_read(state, NV_INDEX) == NV_TEXT
    assert swtpm_persistent_handles(state) == {PRIMARY_KEY}


def test_swtpm_refuses_shipped_state_cut_short() -> None:
    with pytest.raises(ForeignProgramError, match="swtpm does not start"):
        swtpm_nv_read(shipped("tpm2-permall.bin")[:-1], NV_INDEX)


def test_swtpm_finds_no_text_at_another_index() -> None:
    with pytest.raises(ForeignProgramError, match="tpm2 failed"):
        swtpm_nv_read(shipped("tpm2-permall.bin"), NV_INDEX + 1)


def test_lspci_finds_fields_and_checksum_of_shipped_vpd_good() -> None:
    vpd = shipped("pci-vpd.bin")
    account = lspci_vpd(vpd)
    assert "Product Name: blobstore example adapter\n" in account
    assert "[PN] Part number: BS-2048-A\n" in account
    assert "[EC] Engineering changes: A-0042\n" in account
    assert "[SN] Serial number: 20480001\n" in account
    assert "[MN] Manufacture ID: 1014\n" in account
    assert "[RV] Reserved: checksum good, 0 byte(s) reserved\n" in account
    assert "[RW] Read-write area: 175 byte(s) free\n" in account
    assert account.rstrip().endswith("End")
    assert len(vpd) == 256


def test_lspci_finds_checksum_of_altered_vpd_bad() -> None:
    vpd = shipped("pci-vpd.bin")
    assert "checksum bad" in lspci_vpd(altered(vpd, vpd.index(b"20480001")))


def test_fw_printenv_reads_shipped_environment() -> None:
    text = MACHINE.joinpath("uboot-env.txt").read_text()
    assert fw_printenv(shipped("uboot-env.bin")) == dict(
        line.split("=", 1) for line in text.splitlines()
    )


def test_fw_printenv_refuses_altered_environment() -> None:
    with pytest.raises(ForeignProgramError, match="fw_printenv failed"):
        fw_printenv(altered(shipped("uboot-env.bin"), 20))


@pytest.mark.parametrize("name", ["pci-vpd.bin", "uboot-env.bin"])
def test_generator_makes_shipped_bytes_again(generated: Path, name: str) -> None:
    assert generated.joinpath(name).read_bytes() == shipped(name)


def test_generator_makes_another_tpm_with_same_text_and_key(generated: Path) -> None:
    state = generated.joinpath("tpm2-permall.bin").read_bytes()
    assert state != shipped("tpm2-permall.bin")
    assert swtpm_nv_read(state, NV_INDEX) == NV_TEXT
    assert swtpm_persistent_handles(state) == {PRIMARY_KEY}


def test_missing_program_names_its_debian_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingProgramError, match=r"Debian package libubootenv-tool\b"):
        fw_printenv(shipped("uboot-env.bin"))
