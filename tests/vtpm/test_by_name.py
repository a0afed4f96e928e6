"""`blobstore-swtpm`: for programs that start ``swtpm`` by its name (V97 to V99)."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.foreign import run
from tests.vtpm.support import NOT_NEED_INIT, STARTED, environment, key_of, make_image, serving
from tests.vtpm.test_tools import local_authority, run_setup

if TYPE_CHECKING:
    from pathlib import Path

FRONT = [sys.executable, "-c", "from blobstore.cli.swtpm import start; start()"]
SOCKET = [*FRONT, "socket"]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as ``--tpmstate dir=`` names it, with an image whose key is known."""
    directory = tmp_path / "state"
    directory.mkdir()
    image = make_image(directory / "tpm.img")
    key = key_of(image).rename(tmp_path / "tpm.key")
    monkeypatch.setenv("BLOBSTORE_SWTPM_KEY_FILE", str(key))
    return directory


def asked(*arguments: object, pass_fds: tuple[int, ...] = ()) -> tuple[int, bytes, str]:
    done = subprocess.run(
        [*FRONT, *map(str, arguments)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        pass_fds=pass_fds,
        timeout=60,
        check=False,
    )
    said = done.stderr.decode()
    assert "Traceback" not in said
    return done.returncode, done.stdout, said


def states(*arguments: object) -> tuple[int, bytes, str]:
    return asked("socket", "--tpm2", "--print-states", *arguments)


def test_v97_arguments_of_swtpm_run_both(state: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for program, directory in ((SOCKET, state), (["swtpm", "socket"], theirs)):
        arguments = ["--tpm2", "--tpmstate", f"dir={directory},mode=0600", *NOT_NEED_INIT]
        for flags in ("startup-clear", "not-need-init"):
            with serving([*program, *arguments[:-1], flags, "--seccomp", "action=none"]) as tpm:
                if flags == "not-need-init":
                    tpm.tpm2("startup", "--clear")
                assert len(tpm.tpm2("getrandom", "--hex", "8")) == 16
                tpm.ioctl("-s")
                assert tpm.process.wait(timeout=30) == 0
    assert sorted(path.name for path in state.iterdir()) == ["tpm.img"]
    ours = json.loads(states("--tpmstate", f"dir={state}")[1])
    real = run("swtpm", "socket", "--tpm2", "--print-states", "--tpmstate", f"dir={theirs}")
    assert [one["name"] for one in ours["states"]] == [
        one["name"] for one in json.loads(real)["states"]
    ]


def test_v97_without_tpm2_it_is_a_tpm_1_2(state: Path) -> None:
    with serving([*SOCKET, "--tpmstate", f"dir={state}", *STARTED]) as tpm:
        assert json.loads(tpm.ioctl("--info", "1"))["TPMSpecification"]["family"] == "1.2"
        assert tpm.end() == 0
    code, _, said = asked("socket", "--tpm2", "--tpmstate", f"dir={state}", *STARTED, "-p", "1")
    assert (code, "[V7]" in said) == (53, True)


@pytest.mark.interop
def test_v97_swtpm_setup_finds_it_by_its_name(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "swtpm").write_text(f'#!/bin/sh\nexec {shlex.join(FRONT)} "$@"\n')
    (programs / "swtpm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    config = local_authority(tmp_path / "authority")
    setup = ("--tpm2", "--tpmstate", state, "--create-ek-cert", "--config", config)
    run_setup(*setup, "--not-overwrite", "--logfile", tmp_path / "log")
    assert sorted(path.name for path in state.iterdir()) == ["tpm.img"]
    with serving(["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", *STARTED]) as tpm:
        assert tpm.tpm2("nvread", "0x1c00002")[:1] == b"\x30"


def test_v98_the_image_is_named_in_four_ways(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = state / "tpm.img"
    for place in (
        *(f"dir={state}", f"backend-uri=dir://{state}", f"backend-uri=file://{image}"),
        f"backend-uri=blobstore://{image}",
    ):
        assert states("--tpmstate", place)[0] == 0, place
    assert states()[0] == 2
    assert states("--tpmstate", "backend-uri=ftp://a")[0] == 2
    assert states("--tpmstate", f"dir={state}", "more")[0] == 2
    monkeypatch.setenv("TPM_PATH", str(state))
    assert states()[0] == 0
    code, _, said = states("--tpmstate", f"dir={tmp_path}")
    assert (code, "blobstore create" in said) == (20, True)
    assert not (tmp_path / "tpm.img").exists()


def test_v98_files_of_swtpm_are_left_alone(state: Path, tmp_path: Path) -> None:
    linear = tmp_path / "linear"
    arguments = ("--tpm2", "--tpmstate", f"backend-uri=file://{linear}", *STARTED)
    with serving(["swtpm", "socket", *arguments]) as tpm:
        tpm.ioctl("-s")
        tpm.process.wait(timeout=30)
    before = linear.read_bytes()
    code, _, said = asked("socket", *arguments, "-p", "1")
    assert code == 32, said
    assert linear.read_bytes() == before
    assert state.exists()


def test_v99_the_passphrase_is_what_key_names(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, wrong = tmp_path / "tpm.key", tmp_path / "wrong"
    wrong.write_bytes(b"wrong")
    place = ("--tpmstate", f"dir={state}")
    assert states(*place, "--key", f"pwdfile={wrong}")[0] == 51
    monkeypatch.delenv("BLOBSTORE_SWTPM_KEY_FILE")
    assert states(*place)[0] == 52
    assert states(*place, "--key", f"pwdfile={key},mode=aes-256-cbc,kdf=pbkdf2")[0] == 0
    assert states(*place, "--key", f"file={key},format=binary")[0] == 0
    with key.open("rb") as file:
        number = file.fileno()
        arguments = ("socket", "--tpm2", "--print-states", *place, "--key", f"pwdfd={number}")
        assert asked(*arguments, pass_fds=(number,))[0] == 0
    for kind in ("pwdfile", "file"):
        once = tmp_path / "once"
        once.write_bytes(key.read_bytes())
        assert states(*place, "--key", f"{kind}={once},remove=true")[0] == 0
        assert not once.exists()
    assert states(*place, "--key", f"pwdfile={tmp_path}/once,remove=true")[0] == 20
    assert states(*place, "--key", f"pwdfile={key},remove=false")[0] == 0
    assert key.exists()


def test_v99_what_libvirt_asks_for_is_there() -> None:
    for arguments in ([], ["--tpm2"]):
        code, said, _ = asked("socket", *arguments, "--print-capabilities")
        assert code == 0
        assert {"tpm-2.0", "cmdarg-pwd-fd", "cmdarg-key-fd"} <= set(json.loads(said)["features"])
    assert asked("socket", "--tpm2", "--print-info", "1")[0] == 0


@pytest.mark.parametrize("interface", ["chardev", "cuse"])
def test_v96_other_interfaces_are_refused(interface: str) -> None:
    code, _, said = asked(interface, "--tpm2", "--vtpm-proxy", "-n", "x")
    assert (code, interface in said) == (40, True)
