"""What `blobstore serve` is told (O123 to O125): a file, options, and what is refused."""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from pathlib import Path

import jsonschema
import pytest

from blobstore.errors import ConfigError
from blobstore.owner import NbdFront, ServeConfig, StoreFront, load_serve_config, serve_schema
from formats.errors import ArgumentError
from tests.support.cli import blobstore
from tests.support.owners import OwnerProcess

SPEC = Path(__file__).resolve().parents[2] / "spec"

FULL = """\
image = "machine.img"

[store]
path = "machine.sock"
mode = 0o660
group = 0

[[nbd]]
listen = "nbd.sock"
exports = ["uefi-variables", "eeprom"]

[[nbd]]
name = "all"
listen = "localhost:10809"
"""


def load(tmp_path: Path, text: str) -> ServeConfig:
    (tmp_path / "serve.toml").write_text(text)
    return load_serve_config(tmp_path / "serve.toml")


def test_a_file_says_all_o123(tmp_path: Path) -> None:
    config = load(tmp_path, FULL)
    assert config == ServeConfig(
        image="machine.img",
        store=StoreFront(path="machine.sock", mode=0o660, group=0),
        nbd=(
            NbdFront(listen="nbd.sock", exports=("uefi-variables", "eeprom")),
            NbdFront(listen="localhost:10809", name="all"),
        ),
    )
    assert [front.name for front in config.fronts()] == ["store", "nbd", "all"]
    assert load(tmp_path, "") == ServeConfig()
    with pytest.raises(AttributeError):
        config.image = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("imag = 1", "there is no key `imag`"),
        ("[store]\nsocket = 'x'", "there is no key `socket` - at `store`"),
        ("[[nbd]]\nlisten = 'a'\n[[nbd]]\nname = 'b'\nlisen = 'b'", "no key `lisen` - at `nbd[1]`"),
        ("[nbd]\nlisten = 'a'", "expected an array, got `object` - at `nbd`"),
        ("[[store]]", "expected a table, got `array` - at `store`"),
        ("[store]\nmode = '0600'", "expected a whole number, got `str` - at `store.mode`"),
        ("[store]\nmode = 660", "expected a whole number <= 511 - at `store.mode`"),
        ("[store]\ngroup = 'there is none'", "there is no group 'there is none' - at `store`"),
        ("[store]\npath = ''", "'' is not a path of a socket"),
        ("[[nbd]]\nlisten = '0.0.0.0:1'", "NBD is not served at '0.0.0.0'"),
        ("[[nbd]]\nlisten = 'localhost:1'\nmode = 0o660", "neither mode nor group"),
        ("[[nbd]]\nlisten = 'a'\n[[nbd]]\nlisten = 'b'", "are called 'nbd'"),
        ("[[nbd]]\nlisten = 'a'\nname = 'store'", "are called 'store'"),
        ("[[tpm]]\nctrl = 'type=unixio,path=a'\nname = 'store'", "are called 'store'"),
        (
            "[[nbd]]\nlisten = 'a'\n[[tpm]]\nctrl = 'type=unixio,path=a'\nname = 'nbd'",
            "are called 'nbd'",
        ),
        (
            "[[nbd]]\nlisten = 'a'\nname = 'tpm-ctrl'\n[[tpm]]\nctrl = 'type=unixio,path=a'",
            "sockets of two, are called 'tpm-ctrl'",
        ),
        ("[[nbd]]\nlisten = 'a'\nname = 'a:b'", "must be a word"),
        ("[store]\npath = 'a'\n[store", "at line 3, the last"),
        ("[store]\npath = a\nmode = 1", "at line 2, column 8"),
        ("a = " + "[" * 5000, "is not TOML"),
        ("image = '\ud800'", "is not TOML"),
        ("#" * (1 << 20) + "#", "more than 1048576 bytes"),
    ],
)
def test_what_is_wrong_is_named_o123(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "serve.toml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load_serve_config(path)
    assert str(path) in str(caught.value)
    assert "O123" in str(caught.value)
    assert not re.search(r"\$|[Oo]bject `|null", str(caught.value))


def test_no_file_is_an_error_o123(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file"):
        load_serve_config(tmp_path / "none")


def test_options_replace_what_the_file_says_o123(tmp_path: Path) -> None:
    config = load(tmp_path, FULL)
    found = config.with_options(
        socket="a.sock",
        mode=0o666,
        nbd=[NbdFront(listen="b.sock"), NbdFront(listen="localhost:1", name="nbd2")],
    )
    assert found.store == StoreFront(path="a.sock", mode=0o666, group=0)
    assert found.nbd == (
        NbdFront(listen="b.sock", mode=0o666),
        NbdFront(listen="localhost:1", name="nbd2"),
    )
    assert config.with_options() == config
    with pytest.raises(ArgumentError, match="mode must be"):
        config.with_options(mode=0o7777)


def test_the_schema_is_published_and_right_o123() -> None:
    published = json.loads((SPEC / "serve.schema.json").read_text())
    assert published == json.loads(json.dumps(serve_schema())), (
        "blobstore serve --schema >spec/serve.schema.json"
    )
    validator = jsonschema.Draft202012Validator(published)
    validator.check_schema(published)
    validator.validate(tomllib.loads(FULL))
    assert not validator.is_valid({"imag": "x"})
    assert not validator.is_valid({"nbd": [{"listen": 1}]})
    assert not validator.is_valid({"store": {"mode": 660}})


def test_a_configuration_can_be_checked_alone_o123(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(FULL)
    done = blobstore("serve", "--check-config", "--config", path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = blobstore("serve", "other.img", "--check-config", "--config", path)
    assert (done.returncode, b"is for machine.img" in done.stderr) == (2, True)
    assert blobstore("serve", "--check-config").returncode == 2
    path.write_text("imag = 1")
    done = blobstore("serve", "x.img", "--check-config", "--config", path)
    assert done.returncode == 79
    assert b"there is no key `imag`" in done.stderr
    done = blobstore("serve", "x.img", "--check-config", "--socket-mode", "9")
    assert (done.returncode, b"octal digits" in done.stderr) == (2, True)


def test_a_process_serves_what_the_file_says_o124_o125(
    tmp_path: Path, image: Path, runtime: Path
) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(
        f"""
        image = "{image}"
        [store]
        path = "{tmp_path}/s.sock"
        mode = 0o660
        [[nbd]]
        listen = "{tmp_path}/n.sock"
        exports = ["b"]
        group = {os.getegid()}
        mode = 0o640
        """
    )
    owner = OwnerProcess(image, runtime, "--config", path)
    try:
        modes = [
            stat.S_IMODE(tmp_path.joinpath(name).stat().st_mode) for name in ("s.sock", "n.sock")
        ]
        assert modes == [0o660, 0o640]
        assert owner.run("put", image, "a", "-", stdin=b"1").returncode == 0
    finally:
        assert owner.end()[0] == 0
    assert not list(tmp_path.glob("*.sock"))


def test_where_one_front_cannot_be_opened_none_is_left_o124(
    tmp_path: Path, image: Path, runtime: Path
) -> None:
    tmp_path.joinpath("file").write_bytes(b"mine")
    options = ("--nbd", tmp_path / "n.sock", "--nbd", tmp_path / "file")
    done = blobstore("serve", image, "--socket", tmp_path / "s.sock", *options)
    assert done.returncode == 23
    assert b"is not a socket" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "image"]
    assert not runtime.exists()
