"""E-FRU: ipmi-fru, ipmitool and the fru package of PyPI read this project's output, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import subprocess
from typing import TYPE_CHECKING

import fru.fru_format
import pytest

from formats.eeprom.framework.codec import Findings
from formats.eeprom.fru_areas import BoardInfo, ChassisInfo, ProductInfo
from formats.eeprom.ipmi_fru import CODEC, IpmiFru
from tests.support.foreign import program

from .support import check_bytes
from .test_ipmi_fru import BOARD, MACHINE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop


def test_e_fru_ipmi_fru_reads_ours(tmp_path: Path) -> None:
    image = tmp_path / "fru.bin"
    # It knows no other types, and reads BCD plus with one digit in a byte.
    known = dataclasses.replace(MACHINE, multirecords=MACHINE.multirecords[:-1])
    image.write_bytes(CODEC.encode(known, 2048))
    done = subprocess.run(
        [program("ipmi-fru"), f"--fru-file={image}", "--verbose"],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in (
        "FRU Chassis Type: Rack Mount Chassis",
        "FRU Chassis Part Number: CH-1",
        "FRU Board Manufacturer: Example",
        "FRU Board Product Name: BOARD 1",
        "FRU Board Custom Info: extra",
        "FRU Product Name: Server",
        "FRU Product Asset Tag: A-7",
        "750",
        "machine-7",
    ):
        assert line in done.stdout, done.stdout
    assert not done.stderr
    image.write_bytes(CODEC.encode(known, 2048).replace(b"CH-1", b"CH-2"))
    done = subprocess.run(
        [program("ipmi-fru"), f"--fru-file={image}"], capture_output=True, text=True, check=False
    )
    assert "checksum" in (done.stdout + done.stderr).lower()


def test_e_fru5_ipmitool_reads_all_encodings(tmp_path: Path) -> None:
    image, path = tmp_path / "fru.bin", tmp_path / "socket"
    image.write_bytes(CODEC.encode(MACHINE, 512))
    # It talks to a controller first, whatever it is asked; zeros content it.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(20)
        tool = subprocess.Popen(
            [program("ipmitool"), "-I", "dummy", "ekanalyzer", "frushow", f"oc={image}"],
            env={"IPMI_DUMMY_SOCK": str(path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        connection, _ = listener.accept()
        with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while connection.recv(24):
                connection.sendall(bytes(24))
        listing, _ = tool.communicate(timeout=20)
    for line in (
        "Board Mfg Date: 1767323040, 01/02/26 03:04:00 UTC",
        "Board Product Name: BOARD 1 ",
        "Board Serial Number: 2026-00042",
        "Board Part Number: 0102",
        "Additional Custom Mfg. Data: extra",
        "Asset Tag: A-7",
    ):
        assert line in listing.splitlines(), listing


def test_e_fru_the_fru_package_reads_ours_and_we_its() -> None:
    model = IpmiFru(
        chassis=ChassisInfo(chassis_type=23, part_number="CH-1", serial_number="0001"),
        board=BoardInfo(
            mfg_date_time=BOARD.mfg_date_time, manufacturer="Example", custom=("extra",)
        ),
        product=ProductInfo(product_name="Server", asset_tag="A-7"),
    )
    found = fru.fru_format.load(blob=CODEC.encode(model, 256))
    assert found["chassis"]["part_number"] == "CH-1"
    assert found["board"]["manufacturer"] == "Example"
    assert found["board"]["custom_fields"] == ["extra"]
    assert found["product"]["asset_tag"] == "A-7"

    data = fru.fru_format.dump(found)
    read = CODEC.decode(data, Findings.strict())
    assert read.chassis == model.chassis
    assert read.board
    assert read.product
    assert (read.board.manufacturer, read.board.mfg_date_time) == ("Example", BOARD.mfg_date_time)
    assert read.product.asset_tag == "A-7"
    check_bytes(CODEC, data)
