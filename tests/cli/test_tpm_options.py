"""The text of `blobstore serve --tpm`: swtpm's options, separated by commas (V71)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore import StateKeySource
from blobstore.cli.tpm_options import parse_tpm
from blobstore.vtpm import Channel, Startup, TpmVersion
from tests.support.cli import blobstore as blobstore_command

if TYPE_CHECKING:
    from blobstore.owner import TpmOptions


def options_of(text: str) -> TpmOptions:
    return parse_tpm(text).options(None)


def test_v71_a_value_ends_where_the_next_option_begins() -> None:
    options = options_of(
        "name=second,ctrl=type=unixio,path=/run/tpm.ctrl,mode=0600,terminate,"
        "server=type=tcp,port=2321,bindaddr=127.0.0.1,disconnect,"
        "flags=not-need-init,startup-clear,locality=reject-locality-4,allow-set-locality,tpm1.2"
    )
    assert options.name == "second"
    assert options.ctrl == Channel(path=Path("/run/tpm.ctrl"), mode=0o600, terminate=True)
    assert options.data == Channel(port=2321, address="127.0.0.1", disconnect=True)
    assert (options.needs_init, options.startup) == (False, Startup.CLEAR)
    assert options.version is TpmVersion.TPM_12
    assert options.behaviour.reject_locality_4
    assert options.behaviour.allow_set_locality
    assert options.behaviour.auto_shutdown


def test_v71_the_shortest_text_is_a_control_channel() -> None:
    options = options_of("ctrl=type=unixio,path=tpm.sock")
    assert (options.name, options.data, options.version) == ("tpm", None, None)
    assert options.needs_init
    assert options_of("tpm2,ctrl=type=unixio,path=x").version is TpmVersion.TPM_2
    assert options_of("ctrl=type=unixio,path=x,tpm2").version is TpmVersion.TPM_2


def test_v71_an_option_may_be_part_of_a_path() -> None:
    path = "/srv/name=x/tpm2/ctrl"
    assert options_of(f"ctrl=type=unixio,path={path}").ctrl == Channel(path=Path(path))


def test_v71_the_key_of_a_migration_is_read_later(tmp_path: Path) -> None:
    key = tmp_path / "key"
    tpm = parse_tpm(f"migration-key=pwdfile={key},kdf=sha512,ctrl=type=unixio,path=x")
    key.write_text("passphrase")
    assert tpm.migration_key is not None
    with StateKeySource.parse(tpm.migration_key).read() as read:
        options = tpm.options(read)
        assert "passphrase" not in repr((tpm, options))
        assert options.behaviour.migration_key is not None
        assert options.behaviour.migration_key.parts() == (b"passphrase", "sha512", None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unixio:tpm.sock",
        "type=unixio,path=x",
        "x,ctrl=type=unixio,path=x",
        "ctrl=type=unixio,path=x,",
        "ctrl=type=unixio",
        "ctrl=type=unixio,path=x,nonsense",
        "ctrl=type=unixio,path=x,ctrl=type=unixio,path=y",
        "ctrl=type=unixio,path=x,tpm2,tpm1.2",
        "ctrl=type=unixio,path=x,tpm3",
        "ctrl=type=unixio,fd=3",
        "ctrl=type=unixio,clientfd=3",
        "ctrl=type=unixio,path=x,migration=incoming",
        "ctrl=type=unixio,path=x,flags=",
        "ctrl=type=unixio,path=x,name=",
        "server=type=unixio,path=x",
        "name=tpm",
        "name=" + "x" * 300 + ",ctrl=type=unixio,path=x",
        "ctrl=type=unixio,path=x,migration-key=nonsense",
    ],
)
def test_v71_what_is_not_a_tpm_is_wrong_usage(text: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    blobstore.create(image, {}, encrypted=False).close()
    before = image.read_bytes()
    done = blobstore_command("serve", image, "--tpm", text)
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    assert image.read_bytes() == before


def test_v71_two_tpms_of_one_name_are_wrong_usage(tmp_path: Path) -> None:
    image = tmp_path / "image"
    blobstore.create(image, {}, encrypted=False).close()
    tpms = [f"--tpm=ctrl=type=unixio,path={tmp_path / name}" for name in "ab"]
    done = blobstore_command("serve", image, *tpms)
    assert (done.returncode, b"two fronts" in done.stderr) == (2, True)
    assert not (tmp_path / "a").exists()
