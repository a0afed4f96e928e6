"""TLS (N31 to N37): certificates, with clients by hand and with libnbd and QEMU."""

from __future__ import annotations

import json
import logging
import random
import signal
import socket
import ssl
import time
import tracemalloc
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest

import blobstore
from blobstore.nbd.credentials import NbdTls
from blobstore.nbd.exports import NbdDevice
from blobstore.nbd.server import NbdServer
from blobstore.nbd.sockets import parse_nbd_address
from formats.devices.device import MemoryDevice
from formats.errors import ArgumentError, DeviceError, FormatError
from formats.nbd.numbers import Option, OptionReply
from tests.nbd.support import FLAGS, Client, go, option, request
from tests.support.foreign import ForeignProgramError, run
from tests.support.owners import OwnerProcess
from tests.support.pki import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.nbd.sockets import Address

SIZE = 1 << 20


class Pki(NamedTuple):
    """Directories of a server, of a client that it lets in, and of some that it does not."""

    server: Path
    client: Path
    stranger: Path
    anonymous: Path
    revoked: Path


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    parent = tmp_path_factory.mktemp("pki")
    authority, other = Authority(), Authority("another authority")
    server = authority.server(parent / "server")
    client = authority.client(parent / "client")
    stranger = other.client(parent / "stranger", trusts=authority)
    anonymous = parent / "anonymous"
    anonymous.mkdir()
    (anonymous / "ca-cert.pem").write_bytes((client / "ca-cert.pem").read_bytes())
    revoked = authority.client(parent / "revoked")
    authority.revoke(server, revoked / "client-cert.pem")
    return Pki(server, client, stranger, anonymous, revoked)


@pytest.fixture(params=["tcp", "unix"])
def server(request: pytest.FixtureRequest, pki: Pki, tmp_path: Path) -> Iterator[NbdServer]:
    address = tmp_path / "s" if request.param == "unix" else ("127.0.0.1", 0)
    with serving(pki, address) as started:
        yield started


@contextmanager
def serving(
    pki: Pki, address: Address, *, handshake_time: float = 20, any_client: bool = False
) -> Iterator[NbdServer]:
    device = NbdDevice("d", MemoryDevice(SIZE), writable=True)
    tls = NbdTls.from_directory(pki.server, any_client=any_client)
    with NbdServer(address, device, tls=tls, handshake_time=handshake_time) as started:
        yield started


def context(directory: Path, *, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Return the client's side, with its certificate if it has one."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(directory / "ca-cert.pem")
    if (directory / "client-cert.pem").exists():
        made.load_cert_chain(directory / "client-cert.pem", directory / "client-key.pem")
    if version is not None:
        made.minimum_version = made.maximum_version = version
    return made


# ------------------------------------------------------------- by hand


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_n33_everything_works_within_tls(
    pki: Pki, server: NbdServer, version: ssl.TLSVersion
) -> None:
    data = random.Random(1).randbytes(SIZE)
    with Client(server.address) as client:
        client.begin("d", tls=context(pki.client, version=version))
        assert client.write(0, data).error == 0
        assert client.read(0, SIZE).data == data
        client.send(b"".join(request(0, n, 1) for n in range(300)))
        assert [client.reply().data for _ in range(300)] == [data[n : n + 1] for n in range(300)]
        client.send(request(2))
        with pytest.raises(EOFError):
            client.receive(1)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_n33_older_tls_is_refused(pki: Pki, server: NbdServer, version: ssl.TLSVersion) -> None:
    old = context(pki.client, version=version)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with Client(server.address) as client, pytest.raises(ssl.SSLError):
        client.begin("d", tls=old)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("who", ["stranger", "anonymous", "revoked"])
def test_n34_clients_that_are_not_known_are_refused(
    pki: Pki, server: NbdServer, who: str, version: ssl.TLSVersion
) -> None:
    directory: Path = getattr(pki, who)
    # In TLS 1.3 a client learns of it only with the first answer.
    with Client(server.address) as client, pytest.raises((ssl.SSLError, EOFError)):
        client.begin("d", tls=context(directory, version=version))
    with Client(server.address) as other:
        other.begin("d", tls=context(pki.client))


def test_n34_a_server_may_let_in_any_client(pki: Pki, tmp_path: Path) -> None:
    with serving(pki, tmp_path / "s", any_client=True) as server:
        for directory in (pki.anonymous, pki.client):
            with Client(server.address) as client:
                client.begin("d", tls=context(directory))
                assert client.read(0, 1).data == b"\0"


def test_n34_certificates_of_servers_are_not_those_of_clients(pki: Pki, server: NbdServer) -> None:
    wrong = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    wrong.load_verify_locations(pki.server / "ca-cert.pem")
    wrong.load_cert_chain(pki.server / "server-cert.pem", pki.server / "server-key.pem")
    with Client(server.address) as client, pytest.raises((ssl.SSLError, EOFError)):
        client.begin("d", tls=wrong)


def test_n71_certificates_are_read_again_with_the_configuration(tmp_path: Path) -> None:
    """The same file, other certificates: those who are connected stay."""
    image, directory = tmp_path / "image", tmp_path / "tls"
    with blobstore.create(image, {"a": 100}, encrypted=False) as store:
        store.put("a", b"state")
    before, after = Authority("before"), Authority("after")
    before.server(directory)
    old, new = before.client(tmp_path / "old"), after.client(tmp_path / "new")
    config = tmp_path / "serve.toml"
    config.write_text(f'[[nbd]]\nlisten = "{tmp_path / "n"}"\nauto = true\ntls = "{directory}"\n')
    owner = OwnerProcess(image, tmp_path / "run", "--config", config, "--log", "fd=2,level=1")
    try:
        assert owner.process.stderr is not None

        def reread(said: bytes) -> None:
            owner.process.send_signal(signal.SIGHUP)
            line = b""
            while said not in line:
                line = owner.process.stderr.readline()  # type: ignore[union-attr]
                assert line

        with Client(tmp_path / "n") as connected:
            connected.begin("a", tls=context(old))
            (directory / "server-key.pem").rename(directory / "kept")
            reread(b"cannot read")
            with Client(tmp_path / "n") as client:
                client.begin("a", tls=context(old))
            after.server(directory)
            reread(b"was read again")
            with Client(tmp_path / "n") as client:
                client.begin("a", tls=context(new))
            with Client(tmp_path / "n") as client, pytest.raises((ssl.SSLError, EOFError)):
                client.begin("a", tls=context(old))
            assert connected.read(0, 5).data == b"state"
    finally:
        code, said = owner.end()
    assert code == 0, said


def test_n31_nothing_is_told_in_the_clear(server: NbdServer) -> None:
    with Client(server.address) as client:
        client.greet()
        for sent in (option(Option.LIST), go("d"), option(Option.STRUCTURED_REPLY)):
            ((kind, message),) = client.ask(sent)
            assert kind == OptionReply.ERR_TLS_REQD
            assert b"d" not in message.removeprefix(b"begin TLS first [N31]")
        client.send(option(Option.EXPORT_NAME, b"d"))
        with pytest.raises(EOFError):
            client.receive(1)


def test_n32_what_is_sent_too_early_does_not_count(server: NbdServer) -> None:
    with Client(server.address) as client:
        client.receive(18)
        client.send(FLAGS + option(Option.STARTTLS) + go("d"))
        with pytest.raises(EOFError):
            client.receive(1)


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(5000), b"\x16\x03\x01\xff\xff", go("d")]
)
def test_n33_garbage_instead_of_tls_ends_the_connection(
    pki: Pki, server: NbdServer, garbage: bytes
) -> None:
    with Client(server.address) as client:
        client.greet()
        client.ask(option(Option.STARTTLS))
        client.send(garbage)
        client.socket.shutdown(socket.SHUT_WR)
        left = b"".join(iter(lambda: _received(client), b""))
        assert len(left) <= 64  # an alert
    with Client(server.address) as other:
        other.begin("d", tls=context(pki.client))


def _received(client: Client) -> bytes:
    try:
        return client.socket.recv(1000)
    except ConnectionError:
        return b""


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00"])
def test_n11_the_handshake_of_tls_has_a_limit_of_time(
    pki: Pki, tmp_path: Path, sent: bytes
) -> None:
    with serving(pki, tmp_path / "s", handshake_time=0.3) as server, Client(server.address) as slow:
        slow.greet()
        slow.ask(option(Option.STARTTLS))
        slow.send(sent)
        began = time.monotonic()
        with pytest.raises(EOFError):
            while True:  # bytes now and then change nothing
                slow.send(b"\1" if sent else b"")
                slow.socket.settimeout(0.05)
                with suppress(TimeoutError):
                    slow.receive(1)
        assert time.monotonic() - began < 10


def test_n33_connection_that_is_cut_off_is_closed_and_carries_out_no_half_request(
    pki: Pki, tmp_path: Path
) -> None:
    with serving(pki, tmp_path / "s") as server:
        with Client(server.address) as client:
            client.begin("d", tls=context(pki.client))
            client.send(request(1, 0, data=b"data")[:-1])
            assert isinstance(client.socket, ssl.SSLSocket)
            client.socket.shutdown(socket.SHUT_RDWR)
        with Client(server.address) as other:
            other.begin("d", tls=context(pki.client))
            assert other.read(0, 4).data == bytes(4)


def test_n22_stop_ends_connections_within_tls(pki: Pki, tmp_path: Path) -> None:
    with serving(pki, tmp_path / "s") as server, Client(server.address) as client:
        client.begin("d", tls=context(pki.client))
        server.stop()
        assert client.socket.recv(1) == b""  # with TLS's own end, without which this raises


def test_n22_client_that_takes_no_answer_is_left_within_tls(pki: Pki, tmp_path: Path) -> None:
    device = NbdDevice("d", MemoryDevice(8 << 20))
    tls = NbdTls.from_directory(pki.server)
    with (
        NbdServer(tmp_path / "s", device, tls=tls, stall_time=0.2) as server,
        Client(server.address) as deaf,
    ):
        deaf.begin("d", tls=context(pki.client))
        deaf.send(request(0, 0, 8 << 20) * 2)
        time.sleep(1)
        with pytest.raises(EOFError):
            deaf.receive(16 << 20)


def test_n22_stop_does_not_wait_for_a_handshake_of_tls(pki: Pki, tmp_path: Path) -> None:
    with (
        serving(pki, tmp_path / "s", handshake_time=600) as server,
        Client(server.address) as silent,
        Client(server.address) as half,
    ):
        for client in (silent, half):
            client.greet()
            client.ask(option(Option.STARTTLS))
        half.send(b"\x16\x03\x01\x02\x00")
        server.stop()
        with pytest.raises(EOFError):
            half.receive(1)


def test_n29_connection_within_tls_keeps_one_answer(pki: Pki, tmp_path: Path) -> None:
    device = NbdDevice("d", MemoryDevice(32 << 20))
    tls = NbdTls.from_directory(pki.server)
    with NbdServer(tmp_path / "s", device, tls=tls) as server, Client(server.address) as client:
        client.begin("d", tls=context(pki.client))
        tracemalloc.start()
        try:
            for _ in range(3):
                client.send(request(0, 0, 32 << 20))
                left = 20 + 8 + (32 << 20)
                while left:
                    left -= len(client.socket.recv(min(left, 1 << 16)))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The answer, and a copy that this device makes of what is read.
        assert peak < (64 << 20) + (2 << 20)


def test_n36_other_addresses_need_clients_that_are_identified(pki: Pki) -> None:
    known = NbdTls.from_directory(pki.server)
    unknown = NbdTls.from_directory(pki.server, any_client=True)
    device = NbdDevice("d", MemoryDevice(SIZE), writable=True)
    assert parse_nbd_address("0.0.0.0:0", known) == ("0.0.0.0", 0)
    assert parse_nbd_address("[::]:1", known) == ("::", 1)
    for text, tls in (("0.0.0.0:0", None), ("0.0.0.0:0", unknown), ("example.org:1", known)):
        with pytest.raises(ArgumentError, match="N36"):
            parse_nbd_address(text, tls)
        with pytest.raises(ArgumentError, match="N36"):
            NbdServer((text.split(":")[0], 0), device, tls=tls)
    with NbdServer(("0.0.0.0", 0), device, tls=known) as server:
        address = server.address
        assert isinstance(address, tuple)
        with Client(("127.0.0.1", address[1])) as client:
            client.begin("d", tls=context(pki.client))


def test_n34_files_that_are_missing_or_wrong_are_named(pki: Pki, tmp_path: Path) -> None:
    def copy(*without: str) -> Path:
        directory = tmp_path / "-".join(("copy", *without))
        directory.mkdir()
        for path in pki.server.iterdir():
            if path.name not in without:
                directory.joinpath(path.name).write_bytes(path.read_bytes())
        return directory

    for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem"):
        with pytest.raises(DeviceError, match=name):
            NbdTls.from_directory(copy(name))
    mixed = copy()
    mixed.joinpath("server-key.pem").write_bytes((pki.client / "client-key.pem").read_bytes())
    with pytest.raises(FormatError, match=r"server-cert.pem.*N34"):
        NbdTls.from_directory(mixed)
    mixed.joinpath("server-key.pem").write_bytes((pki.server / "server-key.pem").read_bytes())
    for name in ("ca-crl.pem", "ca-cert.pem"):
        mixed.joinpath(name).write_bytes(b"nothing")
        with pytest.raises(FormatError, match=rf"{name}.*N34"):
            NbdTls.from_directory(mixed)
    NbdTls.from_directory(mixed, any_client=True)


def test_n34_encrypted_key_is_refused_and_not_asked_for(pki: Pki, tmp_path: Path) -> None:
    (tmp_path / "server-cert.pem").write_bytes((pki.server / "server-cert.pem").read_bytes())
    encrypted = run(
        *("openssl", "pkcs8", "-topk8", "-v2", "aes256", "-passout", "pass:word"),
        *("-in", pki.server / "server-key.pem"),
    )
    (tmp_path / "server-key.pem").write_bytes(encrypted)
    with pytest.raises(FormatError, match="N34") as caught:
        NbdTls.from_directory(tmp_path, any_client=True)
    assert "not encrypted" in (caught.value.hint or "")


def test_n37_clients_are_named_in_the_log_and_keys_are_not(
    pki: Pki, server: NbdServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Client(server.address) as client:
        client.begin("d", tls=context(pki.client))
    with Client(server.address) as client, pytest.raises((ssl.SSLError, EOFError)):
        client.begin("d", tls=context(pki.stranger))
    server.stop()
    assert "certificate 'commonName=a client'" in caplog.text
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
    key = (pki.server / "server-key.pem").read_text().splitlines()[1:-1]
    said = caplog.text + repr(vars(server))
    assert not any(line in said for line in key)


# ------------------------------------------------------- other programs


def uri(server: NbdServer, directory: Path, name: str = "d") -> str:
    address = server.address
    if isinstance(address, tuple):
        return f"nbds://{address[0]}:{address[1]}/{name}?tls-certificates={directory}"
    return f"nbds+unix:///{name}?socket={address}&tls-certificates={directory}"


def qemu_options(server: NbdServer, directory: Path) -> list[str]:
    address = server.address
    found = f"server.type=unix,server.path={address},tls-hostname=localhost"
    if isinstance(address, tuple):
        found = f"server.type=inet,server.host={address[0]},server.port={address[1]}"
    creds = f"tls-creds-x509,id=tls,dir={directory},endpoint=client"
    return ["--object", creds, "--image-opts", f"driver=nbd,export=d,tls-creds=tls,{found}"]


@pytest.mark.interop
def test_n33_libnbd_copies_within_tls(pki: Pki, server: NbdServer, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(random.Random(2).randbytes(SIZE))
    run("nbdcopy", "--flush", "--connections=3", source, uri(server, pki.client))
    run("nbdcopy", uri(server, pki.client), target)
    assert target.read_bytes() == source.read_bytes()
    found = json.loads(run("nbdinfo", "--json", uri(server, pki.client)))
    assert found["TLS"] is True
    assert [one["export-name"] for one in found["exports"]] == ["d"]


@pytest.mark.interop
def test_n33_qemu_writes_within_tls(pki: Pki, server: NbdServer) -> None:
    options = qemu_options(server, pki.client)
    run("qemu-io", "-c", "write -P 7 1000 300000", "-c", "read -P 7 1000 300000", *options)
    found = json.loads(run("qemu-img", "info", "--output=json", *options))
    assert found["virtual-size"] == SIZE


@pytest.mark.interop
@pytest.mark.parametrize("who", ["stranger", "anonymous", "revoked"])
def test_n34_libnbd_and_qemu_are_refused(pki: Pki, server: NbdServer, who: str) -> None:
    directory: Path = getattr(pki, who)
    with pytest.raises(ForeignProgramError, match="alert"):
        run("nbdinfo", uri(server, directory))
    # QEMU does not even offer a certificate that its own authority did not make.
    with pytest.raises(ForeignProgramError, match=r"alert|failed validation"):
        run("qemu-img", "info", *qemu_options(server, directory))


@pytest.mark.interop
def test_n31_libnbd_and_qemu_are_told_to_begin_tls(pki: Pki, tmp_path: Path) -> None:
    with serving(pki, tmp_path / "s") as server:
        plain = f"nbd+unix:///d?socket={server.address}"
        with pytest.raises(ForeignProgramError, match="Operation not supported"):
            run("nbdinfo", plain)
        with pytest.raises(ForeignProgramError, match="TLS negotiation required"):
            run("qemu-img", "info", plain)


@pytest.mark.interop
def test_n34_a_server_of_another_authority_is_not_believed(pki: Pki, tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    for path in pki.client.iterdir():
        (tmp_path / "ca" / path.name).write_bytes(path.read_bytes())
    other = Authority("another authority").client(tmp_path / "other")
    (tmp_path / "ca" / "ca-cert.pem").write_bytes((other / "ca-cert.pem").read_bytes())
    with (
        serving(pki, ("127.0.0.1", 0)) as server,  # on Unix sockets libnbd believes all
        pytest.raises(ForeignProgramError, match="certificate verification"),
    ):
        run("nbdinfo", uri(server, tmp_path / "ca"))
