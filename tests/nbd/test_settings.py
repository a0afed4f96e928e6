"""What is exported, as a command line says it (N36, N41, N45, N50)."""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING

import pytest

import blobstore
from formats.errors import ArgumentError, DeviceError
from formats.nbd.numbers import OptionReply
from tests.nbd.support import Client, option
from tests.support.cli import blobstore as run_blobstore
from tests.support.foreign import ForeignProgramError, run
from tests.support.owners import OwnerProcess
from tests.support.pki import Authority
from tests.support.stores import image, open_store, spec
from tests.support.windows import window_spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.store.store import Store

SECTIONS = [window_spec("w", 1000, b"window"), spec("b", 100, b"blob"), spec("volume", 9, b"v")]


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(image(SECTIONS)) as opened:
        yield opened


def names(store: Store, path: Path, **said: object) -> list[str]:
    """Return what a server with such settings lists, after a section was registered later."""
    settings = blobstore.NbdSettings(**said)  # type: ignore[arg-type]
    with settings.server(str(path / "s"), store) as server:
        store.register("later", 100)
        store.put("later", b"it is there")
        with Client(server.address) as client:
            client.greet()
            return [data[4:].decode() for _, data in client.ask(option(3))[:-1]]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ["w", "b", "volume", "later"]),
        ({"all_sections": True}, ["w", "b", "volume", "later"]),
        ({"exports": ("w",)}, ["w"]),
        ({"exports": ("later", "b")}, ["b", "later"]),
        ({"exports": ("w",), "all_sections": True}, ["w", "b", "volume", "later"]),
        ({"volume": "payload"}, ["payload"]),
        ({"volume": "payload", "exports": ("w",)}, ["payload", "w"]),
        ({"volume": "volume", "all_sections": True}, ["volume", "w", "b", "later"]),
    ],
)
def test_n45_what_is_exported(
    store: Store, tmp_path: Path, said: dict[str, object], expected: list[str]
) -> None:
    assert names(store, tmp_path, **said) == expected


def test_n45_named_sections_that_are_not_there_are_logged(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    blobstore.NbdSettings(exports=("w", "typo")).server(str(tmp_path / "s"), store)
    assert "'typo' is exported once it is registered" in caplog.text
    assert "'w'" not in caplog.text
    blobstore.NbdSettings(in_place=("w", "b")).server(str(tmp_path / "s"), store)
    assert "'b' is a blob: it is only read" in caplog.text
    assert "'w'" not in caplog.text


def test_n45_sections_that_go_are_gone_for_later_clients(store: Store, tmp_path: Path) -> None:
    with blobstore.NbdSettings().server(str(tmp_path / "s"), store) as server:
        store.delete("b")
        with Client(server.address) as client, pytest.raises(LookupError) as caught:
            client.begin("b", structured=False)
        assert caught.value.args[0][0] == OptionReply.ERR_UNKNOWN


def test_settings_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="not both"):
        blobstore.NbdSettings(tls_directory=tmp_path, tls_psk_file=tmp_path / "k")
    with pytest.raises(ArgumentError, match="any client"):
        blobstore.NbdSettings(tls_any_client=True)
    with pytest.raises(ArgumentError, match=r"'w' cannot be in place"):
        blobstore.NbdSettings(exports=("b",), in_place=("w",))
    blobstore.NbdSettings(exports=("b",), in_place=("w",), all_sections=True)
    blobstore.NbdSettings(in_place=("w",))


def test_n36_address_and_tls_are_looked_at_together(store: Store, tmp_path: Path) -> None:
    directory = Authority().server(tmp_path / "tls")
    with pytest.raises(ArgumentError, match="N36"):
        blobstore.NbdSettings().server("0.0.0.0:0", store)
    with pytest.raises(ArgumentError, match="N36"):
        blobstore.NbdSettings(tls_directory=directory, tls_any_client=True).server(
            "0.0.0.0:0", store
        )
    blobstore.NbdSettings(tls_directory=directory).server("0.0.0.0:0", store)
    with pytest.raises(DeviceError, match=r"server-cert\.pem"):
        blobstore.NbdSettings(tls_directory=tmp_path).server("s", store)


# ------------------------------------------------------------ the command line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "machine.img"
    with blobstore.create(made, {"a": 100}, encrypted=False) as store:
        store.register("flash", 1 << 16, "window")
        store.put("a", b"blob")
    return made


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    return directory


@pytest.mark.interop
def test_n34_n41_n45_serve_exports_what_it_is_told(
    path: Path, runtime: Path, tmp_path: Path
) -> None:
    authority = Authority()
    server, client = authority.server(tmp_path / "server"), authority.client(tmp_path / "client")
    said = ("--nbd", "127.0.0.1:0", "--nbd-tls", server, "--nbd-volume", "disk", "--auto")
    owner = OwnerProcess(path, runtime, *said, "--nbd-in-place", "flash")
    try:
        port = re.search(rb"NBD at 127\.0\.0\.1:(\d+)", owner.said)
        assert port, owner.said
        there = f"nbds://127.0.0.1:{int(port[1])}"
        of = f"?tls-certificates={client}"
        found = json.loads(run("nbdinfo", "--list", "--json", f"{there}/{of}"))
        sizes = {one["export-name"]: one["export-size"] for one in found["exports"]}
        assert sizes == {"disk": path.stat().st_size, "a": 4, "flash": 1 << 16}
        (tmp_path / "new").write_bytes(b"\7" * (1 << 16))
        run("nbdcopy", "--flush", tmp_path / "new", f"{there}/flash{of}")
        run("nbdcopy", f"{there}/disk{of}", tmp_path / "copy")
        with pytest.raises(ForeignProgramError):
            run("nbdinfo", f"nbd://127.0.0.1:{int(port[1])}/a")
    finally:
        code, log = owner.end()
    assert code == 0
    assert b"certificate 'commonName=a client'" in log
    with blobstore.open(path, read_only=True) as store:
        assert store.get("flash") == b"\7" * (1 << 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--nbd-export", "a"), "need --nbd"),
        (("--auto",), "need --nbd"),
        (("--nbd", "0.0.0.0:1"), "N36"),
        (("--nbd", "s", "--nbd-tls", "d", "--nbd-tls-psk", "f"), "not both"),
    ],
)
def test_serve_refuses_what_does_not_fit(
    path: Path, options: tuple[str, ...], message: str
) -> None:
    done = run_blobstore("serve", path, *options)
    assert done.returncode == 2
    assert message in done.stderr.decode()
