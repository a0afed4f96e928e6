"""`blobstore benchmark`: what it measures, in both forms, and that nothing remains."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import luks
from blobstore.cli.put_speed import SIZES, measure_puts
from formats.errors import DeviceError
from luks.keys import throughput
from tests.support.cli import fails, succeeds

if TYPE_CHECKING:
    from pathlib import Path

QUICK = ("--iter-time", "1", "--seconds", "0.01")


def test_json_has_all_that_was_measured(tmp_path: Path) -> None:
    results = json.loads(succeeds("benchmark", tmp_path, *QUICK, "--json"))
    assert set(results) == {"kdf", "cipher", "put"}
    assert [kdf.get("hash", kdf["type"]) for kdf in results["kdf"]] == [
        *throughput.HASHES,
        "argon2i",
        "argon2id",
    ]
    assert all(kdf["iterations_per_second"] > 1000 for kdf in results["kdf"] if "hash" in kdf)
    assert [(speed["cipher"], speed["key_size"]) for speed in results["cipher"][::2]] == [
        *throughput.CIPHERS
    ]
    for speed in results["cipher"]:
        assert speed["encrypt"] > 0
        assert speed["decrypt"] > 0
        large_xts = "xts" in speed["cipher"] and speed["sector_size"] == 4096
        assert speed["way"].partition(",")[0] == ("sectors" if large_xts else "bulk")
    assert [put["size"] for put in results["put"]] == [*SIZES]
    for put in results["put"]:
        assert 0 < put["median"] <= put["slowest"]
        assert put["disk"] > 0
    assert not [*tmp_path.iterdir()]


def test_the_table_shows_which_way_the_ciphers_go() -> None:
    lines = succeeds("benchmark", "--only", "cipher", *QUICK).decode().splitlines()
    assert lines[0].split()[-3:] == ["DECRYPT", "MiB/s", "WAY"]
    assert len(lines) == 1 + len(throughput.CIPHERS) * len(throughput.SECTOR_SIZES)
    ways = {tuple(line.rstrip().rsplit("  ", 1)[-1].split()) for line in lines[1:]}
    assert ways <= {("bulk,", "XTS"), ("bulk,", "ECB"), ("sectors",)}


def test_tables_of_kdfs_and_puts(tmp_path: Path) -> None:
    text = succeeds("benchmark", tmp_path, "--only", "kdf", "--only", "put", *QUICK).decode()
    for word in ("pbkdf2-sha256", "argon2id", "PUT OF BYTES", "1048576"):
        assert word in text
    assert "WAY" not in text


def test_puts_need_a_directory(tmp_path: Path) -> None:
    assert fails("benchmark", "--only", "put") == 2
    assert fails("benchmark", tmp_path / "none", "--only", "put") == DeviceError.exit_code
    assert "put" not in json.loads(succeeds("benchmark", "--only", "cipher", *QUICK, "--json"))


def test_a_directory_that_cannot_be_written_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="none"):
        next(measure_puts(tmp_path / "none"))


@pytest.mark.parametrize(
    ("cipher", "key_size", "sector_size", "way"),
    [
        ("aes-xts-plain64", 64, 512, "bulk, XTS"),
        ("aes-xts-plain64", 64, 4096, "sectors"),
        ("aes-xts-plain64", 48, 4096, "bulk, ECB"),
        ("camellia-xts-plain64", 64, 4096, "bulk, ECB"),
        ("aes-cbc-essiv:sha256", 32, 4096, "bulk, ECB"),
        ("aes-ctr-plain64", 32, 4096, "sectors"),
    ],
)
def test_the_way_is_that_of_the_cipher(
    cipher: str, key_size: int, sector_size: int, way: str
) -> None:
    speed = throughput.measure_cipher(cipher, key_size, sector_size, seconds=0.001)
    assert (speed.cipher, speed.key_size, speed.sector_size) == (cipher, key_size, sector_size)
    assert speed.way == way


def test_costs_are_some_that_a_volume_could_have() -> None:
    for cost in throughput.benchmark_kdfs(iter_time=1):
        assert isinstance(cost, luks.Pbkdf2 | luks.Argon2)
