"""P18: places within TLS, with nbdkit and qemu-nbd, which have their own TLS, as servers."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.image.remote.tls import ClientTls
from formats.errors import ArgumentError, DeviceError, FormatError
from tests.nbd.servers import nbdkit
from tests.support.pki import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop

SECTIONS = {"a": 1000}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def client(authority: Authority, tmp_path: Path) -> Path:
    return authority.client(tmp_path / "client")


@pytest.fixture
def server(authority: Authority, tmp_path: Path) -> Iterator[Path]:
    """A server that wants to know its clients; returns its socket."""
    directory = authority.server(tmp_path / "server")
    options = ("--tls=require", f"--tls-certificates={directory}", "--tls-verify-peer")
    with nbdkit(tmp_path / "socket", *options, "memory", "16M"):
        yield tmp_path / "socket"


def place_at(socket: Path, directory: Path, name: str = "localhost") -> str:
    return f"nbds+unix:///?socket={socket}&tls-certificates={directory}&tls-hostname={name}"


def test_p18_a_store_lies_behind_tls(server: Path, client: Path) -> None:
    place = place_at(server, client)
    with blobstore.create(place, SECTIONS, encrypted=False) as store:
        store.put("a", b"within TLS")
    with blobstore.open(place) as store:
        assert store.get("a") == b"within TLS"


def test_p18_the_server_has_to_be_the_one_that_is_meant(
    server: Path, client: Path, authority: Authority, tmp_path: Path
) -> None:
    with pytest.raises(DeviceError, match=r"(?i)hostname mismatch"):
        blobstore.open(place_at(server, client, "elsewhere"))
    trusting = authority.client(tmp_path / "trusting", trusts=Authority("another"))
    with pytest.raises(DeviceError, match=r"(?i)certificate verify failed"):
        blobstore.open(place_at(server, trusting))
    authority.revoke(client, tmp_path / "server" / "server-cert.pem")
    with pytest.raises(DeviceError, match=r"(?i)certificate revoked"):
        blobstore.open(place_at(server, client))


def test_p18_a_server_that_wants_to_know_its_client_refuses_others(
    server: Path, client: Path
) -> None:
    (client / "client-cert.pem").unlink()
    with pytest.raises(DeviceError, match=r"cannot reach|closed|refuses"):
        blobstore.open(place_at(server, client))


def test_p18_nothing_is_said_in_the_clear(server: Path, tmp_path: Path, client: Path) -> None:
    with pytest.raises(blobstore.StorageError, match="encryption"):
        blobstore.open(f"nbd+unix:///?socket={server}")
    with (
        nbdkit(tmp_path / "clear", "memory", "16M"),
        pytest.raises(blobstore.StorageError, match=r"TLS|encrypt"),
    ):
        blobstore.open(place_at(tmp_path / "clear", client))


def test_p18_files_that_cannot_be_used_are_named(
    server: Path, client: Path, tmp_path: Path
) -> None:
    with pytest.raises(DeviceError, match="none"):
        blobstore.open(place_at(server, tmp_path / "none"))
    (client / "client-key.pem").write_text("no key")
    with pytest.raises(FormatError, match="P18"):
        blobstore.open(place_at(server, client))
    (client / "ca-cert.pem").write_text("no certificate")
    with pytest.raises(FormatError, match=re.escape(str(client))):
        blobstore.open(place_at(server, client))


@pytest.mark.parametrize("option", ["tls-verify-peer=false", "tls-psk-file=keys", "x=y"])
def test_p18_what_is_not_supported_is_refused(option: str) -> None:
    with pytest.raises(ArgumentError, match=option.partition("=")[0]):
        blobstore.place_of(f"nbds://host/x?{option}")


def test_p18_without_certificates_the_system_s_authorities_are_believed() -> None:
    context = ClientTls().context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_p18_the_place_is_that_of_libnbd(server: Path, client: Path) -> None:
    if shutil.which("nbdinfo") is None:
        pytest.fail("nbdinfo is missing: see tools/system-packages.list")
    place = f"nbds+unix:///?socket={server}&tls-certificates={client}"
    found = subprocess.run(
        ["nbdinfo", "--size", place], capture_output=True, timeout=60, check=True
    )
    assert int(found.stdout) == 16 << 20
