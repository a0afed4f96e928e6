"""Options as swtpm takes them (V90 to V96)."""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from blobstore import StateKeySource
from blobstore.vtpm import swtpm_options as options
from tests.support.cli import blobstore as blobstore_command
from tests.support.cli import fails
from tests.support.foreign import run
from tests.vtpm.support import STARTED, environment, key_of, refused, serving, vtpm_of

if TYPE_CHECKING:
    from collections.abc import Iterator

USER, GROUP = pwd.getpwuid(os.geteuid()), grp.getgrgid(os.getegid())

#: Runs the command line so that nothing can be imported once the user has changed.
WITHOUT_IMPORTS = """
import os, sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if os.geteuid() != 0:
            raise AssertionError(f"{name} is imported too late")
sys.meta_path.insert(0, Refusing())
from blobstore.__main__ import start
start()
"""


def swtpm_takes(directory: Path, *arguments: str) -> bool:
    """Say whether swtpm accepts options; with --print-states it ends after them."""
    done = subprocess.run(
        ["swtpm", "socket", "--tpm2", "--print-states", *arguments],
        cwd=directory,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode == 0


def is_taken(text: str) -> bool:
    try:
        options.parse_control(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "more",
    [
        *("mode=660", "mode=0660", "mode=6", "mode=00777", "mode=777"),
        *("mode=1777", "mode=0o660", "mode=8", "mode=abc", "mode=6_6"),
        *(f"uid={USER.pw_name}", f"uid={USER.pw_uid}", f"gid={GROUP.gr_name}"),
        *("uid=no-such-user", "gid=no-such-group", "uid=0x0"),
    ],
)
def test_v90_modes_and_owners_are_those_of_swtpm(tmp_path: Path, more: str) -> None:
    text = f"type=unixio,path=c,{more}"
    theirs = swtpm_takes(tmp_path, "--tpmstate", f"dir={tmp_path}", "--ctrl", text)
    assert is_taken(text) == theirs


def test_v90_a_socket_has_the_mode_and_the_named_owner(image: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    server = f"type=unixio,path={data},mode=640,uid={USER.pw_name},gid={GROUP.gr_name}"
    with vtpm_of(image, *STARTED, "--server", server, data=False):
        status = data.stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o640, USER.pw_uid)
        assert status.st_gid == GROUP.gr_gid


@pytest.mark.parametrize("kind", ["file", "pwdfile"])
@pytest.mark.parametrize(
    ("more", "stays"),
    [
        *((",remove=true", False), (",remove=TRUE", False), (",remove=1", False)),
        *((",remove", False), (",remove=false", True), ("", True)),
    ],
)
def test_v91_a_key_is_removed_when_it_was_read(
    tmp_path: Path, kind: str, more: str, *, stays: bool
) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"00112233445566778899aabbccddeeff")
    source = StateKeySource.parse(f"{kind}={key}{more}", removable=True)
    assert key.exists()
    with source.read() as read:
        assert read.parts()[0] == b"00112233445566778899aabbccddeeff"
        assert key.exists() == stays


def test_v91_the_tpm_removes_its_key(image: Path, tmp_path: Path) -> None:
    key = tmp_path / "migration"
    key.write_bytes(b"passphrase")
    with vtpm_of(image, *STARTED, "--migration-key", f"pwdfile={key},remove=true") as tpm:
        assert not key.exists()
        assert tpm.end() == 0
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    key.write_bytes(b"passphrase")
    arguments = ("--tpm2", "--tpmstate", f"dir={theirs}", *STARTED)
    with serving(
        ["swtpm", "socket", *arguments, f"--migration-key=pwdfile={key},remove=true"]
    ) as swtpm:
        swtpm.ioctl("-c")  # it listens before it reads the key, and answers afterwards
        assert not key.exists()


def test_v91_it_stays_where_it_may_be_needed_again(image: Path, tmp_path: Path) -> None:
    key = tmp_path / "migration"
    key.write_bytes(b"passphrase")
    spec = f"pwdfile={key},remove=true"
    tpm = f"ctrl=type=unixio,path={tmp_path}/c,migration-key={spec}"
    assert fails("import", image, tmp_path, "--from", "swtpm-dir", "--swtpm-key", spec) == 2
    assert fails("serve", image, "--tpm", tpm) == 2
    assert fails("vtpm", image, *STARTED, "-p", "1", "--migration-key", f"{spec}x") == 2
    assert key.exists()


def test_v92_what_tpmstate_says_is_checked() -> None:
    parse = options.parse_state_place
    assert parse("dir=/a,mode=600,lock,backup,fsync") == Path("/a")
    assert parse("backend-uri=file:///a,lock=true,fsync=false") == "file:///a"
    for wrong in (
        *("", "mode=600", "dir=/a,backend-uri=file:///a", "dir=/a,mode=999", "dir=/a,sync"),
        *("dir=/a,lock=perhaps", "dir=", "/a", "dir=/a,fsync,fsync"),
    ):
        with pytest.raises(ValueError):
            parse(wrong)


def test_v92_a_script_may_say_where_swtpm_had_the_state(image: Path, tmp_path: Path) -> None:
    state = f"dir={tmp_path / 'none'},mode=600,lock,backup,fsync"
    with vtpm_of(image, *STARTED, "--tpmstate", state) as tpm:
        assert tpm.end() == 0
    assert not (tmp_path / "none").exists()
    assert fails("vtpm", image, *STARTED, "-p", "1", "--tpmstate", "dir=/a,nonsense") == 2


def test_v93_states_are_printed_while_the_tpm_runs(image: Path, runtime: Path) -> None:
    arguments = [sys.executable, "-m", "blobstore", "vtpm", str(image), "--print-states"]
    with vtpm_of(image, *STARTED) as tpm:
        tpm.ioctl("-v")
        done = subprocess.run(
            arguments,
            env={**environment(), "BLOBSTORE_RUNTIME_DIR": str(runtime)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
        running = json.loads(done.stdout)
        assert {state["name"] for state in running["states"]} == {"permall", "volatile"}
        assert tpm.end() == 0
    later = blobstore_command("vtpm", image, "--print-states", "--key-file", key_of(image))
    assert {state["name"] for state in json.loads(later.stdout)["states"]} >= {"permall"}


@pytest.fixture
def of_nobody(image: Path, runtime: Path) -> Iterator[Path]:
    """An image that nobody owns, in directories that everyone reaches."""
    if os.geteuid() != 0:
        yield image
        return
    nobody = pwd.getpwnam("nobody")
    runtime.mkdir(mode=0o700)
    for path in (image, key_of(image), runtime, image.parent):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    above = [path for path in image.parents if path.stat().st_mode & 0o111 != 0o111]
    modes = {path: path.stat().st_mode & 0o7777 for path in above}
    for path, mode in modes.items():
        path.chmod(mode | 0o111)
    yield image
    for path, mode in modes.items():
        path.chmod(mode)


def test_v94_nothing_is_imported_after_the_user_has_changed(of_nobody: Path) -> None:
    image, ctrl = of_nobody, of_nobody.parent / "c"
    if os.geteuid() != 0:  # then the user cannot change
        assert refused(image, "--runas", "root")[0] == 20
        return
    arguments = ("vtpm", image, "--key-file", key_of(image), "--runas", "nobody", *STARTED)
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", WITHOUT_IMPORTS, *map(str, arguments)),
            *("--daemon", f"--pid=file={ctrl}.pid", f"--ctrl=type=unixio,path={ctrl},terminate"),
        ],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()
    try:
        assert ctrl.stat().st_uid == pwd.getpwnam("nobody").pw_uid
        key = ("--key-file", key_of(image))
        states = blobstore_command("vtpm", image, "--print-states", "--no-lock", *key)
        assert b'"permall"' in states.stdout
        assert run("swtpm_ioctl", "--unix", ctrl, "--info", "1")
    finally:
        with suppress(ProcessLookupError, FileNotFoundError):
            os.kill(int(Path(f"{ctrl}.pid").read_text()), signal.SIGTERM)


@pytest.mark.parametrize("flags", ["7", "0x4", "1", "02", "0"])
def test_v95_info_is_that_of_swtpm(image: Path, tmp_path: Path, flags: str) -> None:
    state = tmp_path / "state"
    state.mkdir()
    swtpm = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", *STARTED]
    number = str(int(flags, 8) if flags == "02" else int(flags, 0))
    with serving(swtpm) as tpm:
        theirs = json.loads(tpm.ioctl("--info", number))
    ours = blobstore_command("vtpm", "--tpm2", "--print-info", flags)
    assert json.loads(ours.stdout) == theirs
    assert fails("vtpm", image, "--print-info", "x") == 2
