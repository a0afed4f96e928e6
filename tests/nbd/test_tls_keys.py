"""TLS with pre-shared keys (N35), with keys that psktool made, and libnbd and QEMU as clients."""

from __future__ import annotations

import logging
import ssl
import sys
from typing import TYPE_CHECKING

import pytest

from blobstore.nbd.credentials import NbdTls, parse_psk_file
from blobstore.nbd.exports import NbdDevice
from blobstore.nbd.server import NbdServer
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError, FormatError, UnsupportedError
from tests.nbd.support import Client
from tests.support.foreign import ForeignProgramError, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 1 << 20
HAS_KEYS = sys.version_info >= (3, 13)
#: Python has had the means since 3.13; what older ones do has a test of its own.
needs_keys = pytest.mark.skipif(not HAS_KEYS, reason="Python has pre-shared keys since 3.13")


def make_keys(directory: Path, identity: str = "alice") -> Path:
    """Have psktool make a file of keys, in a directory as QEMU has it."""
    directory.mkdir(exist_ok=True)
    run("psktool", "-u", identity, "-p", directory / "keys.psk")
    return directory / "keys.psk"


def key_of(path: Path) -> bytes:
    return bytes.fromhex(path.read_text().strip().partition(":")[2])


@pytest.mark.interop
def test_n35_files_of_psktool_are_read(tmp_path: Path) -> None:
    path = make_keys(tmp_path)
    make_keys(tmp_path, "böb")
    first, second = path.read_text().split()
    assert parse_psk_file(path.read_bytes(), "keys") == {
        "alice": bytes.fromhex(first.partition(":")[2]),
        "böb": bytes.fromhex(second.partition(":")[2]),
    }


def test_n35_lines_have_an_identity_and_a_key() -> None:
    key = "00112233445566778899aabbccddeeff"
    assert parse_psk_file(f"\n a:{key}\r\n\n#c3b6:{key.upper()}".encode(), "f") == {
        "a": bytes.fromhex(key),
        "ö": bytes.fromhex(key),
    }
    for line in ("a", f":{key}", f"a:{key}0", f"a:{key[:-2]}", f"#z:{key}", f"\xff:{key}", "a:b:"):
        with pytest.raises(FormatError, match=r"line 2 of f .*N35") as caught:
            parse_psk_file(b"good:" + key.encode() + b"\n" + line.encode("latin-1"), "f")
        assert key not in str(caught.value)
    with pytest.raises(FormatError, match=r"line 2 of f .*another line"):
        parse_psk_file(f"a:{key}\na:{key}".encode(), "f")
    with pytest.raises(FormatError, match="has no keys"):
        parse_psk_file(b"\n", "f")


@pytest.mark.skipif(HAS_KEYS, reason="this Python has pre-shared keys")
def test_n35_older_python_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"3\.13"):
        NbdTls.from_psk_file(tmp_path / "keys.psk")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NbdServer]:
    tls = NbdTls.from_psk_file(make_keys(tmp_path / "server"))
    device = NbdDevice("d", MemoryDevice(SIZE), writable=True)
    with NbdServer(("127.0.0.1", 0), device, tls=tls) as started:
        yield started


def uri(server: NbdServer, path: Path, identity: str = "alice") -> str:
    host, port = server.address if isinstance(server.address, tuple) else ("", 0)
    return f"nbds://{identity}@{host}:{port}/d?tls-psk-file={path}"


def qemu_options(server: NbdServer, path: Path, identity: str = "alice") -> list[str]:
    host, port = server.address if isinstance(server.address, tuple) else ("", 0)
    creds = f"tls-creds-psk,id=tls,dir={path.parent},username={identity},endpoint=client"
    image = f"driver=nbd,export=d,tls-creds=tls,server.type=inet,server.host={host}"
    return ["--object", creds, "--image-opts", f"{image},server.port={port}"]


@needs_keys
@pytest.mark.interop
def test_n35_libnbd_and_qemu_work_with_a_key(
    server: NbdServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "server" / "keys.psk"
    assert run("nbdinfo", "--size", uri(server, path)).strip() == str(SIZE).encode()
    run("qemu-io", "-c", "write -P 7 0 9999", *qemu_options(server, path))
    run("qemu-io", "-c", "read -P 7 0 9999", *qemu_options(server, path))
    server.stop()
    assert "identity 'alice'" in caplog.text
    said = caplog.text + repr(vars(server))
    assert key_of(path).hex() not in said
    assert repr(key_of(path)) not in said


@needs_keys
@pytest.mark.interop
@pytest.mark.parametrize("identity", ["alice", "mallory"])
def test_n35_other_keys_and_identities_are_refused(
    server: NbdServer, tmp_path: Path, identity: str
) -> None:
    path = make_keys(tmp_path / "other", identity)
    with pytest.raises(ForeignProgramError, match="alert"):
        run("nbdinfo", uri(server, path, identity))
    with pytest.raises(ForeignProgramError, match="alert"):
        run("qemu-img", "info", *qemu_options(server, path, identity))


def client_context(key: bytes, version: ssl.TLSVersion, ciphers: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_ciphers(ciphers)
    if sys.version_info >= (3, 13):
        context.set_psk_client_callback(lambda _: ("alice", key))
    return context


@needs_keys
@pytest.mark.parametrize(
    ("version", "ciphers", "works"),
    [
        (ssl.TLSVersion.TLSv1_3, "ALL", True),
        (ssl.TLSVersion.TLSv1_2, "kECDHEPSK", True),
        (ssl.TLSVersion.TLSv1_2, "kPSK", False),  # without forward secrecy
        (ssl.TLSVersion.TLSv1_2, "kECDHEPSK+eNULL:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1_2, "aNULL:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1_2, "ECDHE", False),
    ],
)
def test_n35_key_exchanges_are_ephemeral_and_encrypt(
    server: NbdServer, tmp_path: Path, version: ssl.TLSVersion, ciphers: str, works: bool
) -> None:
    key = key_of(tmp_path / "server" / "keys.psk")
    context = client_context(key, version, ciphers)
    with Client(server.address) as client:
        if works:
            client.begin("d", tls=context)
            assert client.read(0, 1).data == b"\0"
        else:
            with pytest.raises(ssl.SSLError):
                client.begin("d", tls=context)


@needs_keys
def test_n35_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"keys\.psk"):
        NbdTls.from_psk_file(tmp_path / "keys.psk")
