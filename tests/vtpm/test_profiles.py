"""Profiles of new TPMs, what libtpms says of one, another root (V100 to V103, V106 to V109)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from blobstore.foreign.encryption import StateKey
from blobstore.vtpm import abi
from blobstore.vtpm import swtpm_options as options
from blobstore.vtpm.profile import ProfileSource
from blobstore.vtpm.sockets import connection
from blobstore.vtpm.transfers import received
from formats.errors import DeviceError
from formats.state.swtpm import Slot, TpmVersion
from tests.foreign.samples import PERMANENT, VOLATILE
from tests.support.cli import blobstore as blobstore_command
from tests.vtpm.support import STARTED, environment, key_of, make_image, refused, vtpm_of

if TYPE_CHECKING:
    from collections.abc import Sequence

HAS_PROFILES = abi.has_profiles(abi.loaded())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name=null", '{"Name": "null"}'),
        ('name=a"b', '{"Name": "a\\"b"}'),
        ('profile={"Name":"custom:x","Algorithms":"rsa,ecc"}', None),
        ('profile={"Name":"custom","Nested":{"a":{}}}', None),
        ("profile=null", "null"),
    ],
)
def test_v100_a_profile_is_given_as_to_swtpm(text: str, expected: str | None) -> None:
    read = options.parse_profile(text).read()
    assert read == (text.removeprefix("profile=") if expected is None else expected)


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", '{"Name":"custom"}', "name=a,file=b", "fd=x", "name="),
        *('profile={"Name":"custom"', 'profile={"a":1},name=b'),
        "name=custom,remove-disabled=fips-host",
    ],
)
def test_v100_what_is_not_a_place_of_a_profile_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"option|takes one|not"):
        options.parse_profile(text)


def test_v100_a_profile_is_read_from_a_file_or_descriptor(tmp_path: Path) -> None:
    file = tmp_path / "profile"
    file.write_text(' {"Name":"custom"}\n')
    assert options.parse_profile(f"file={file}").read() == '{"Name":"custom"}'
    reading, writing = os.pipe()
    os.write(writing, b'{"Name":"null"}')
    os.close(writing)
    assert options.parse_profile(f"fd={reading}").read() == '{"Name":"null"}'
    with pytest.raises(DeviceError):
        options.parse_profile(f"file={tmp_path}/none").read()
    for content in (b"x" * 70_000, b"{\0}", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="V100"):
            ProfileSource(file=file).read()


def test_v100_a_profile_is_for_a_new_tpm_2(image: Path, tmp_path: Path) -> None:
    with vtpm_of(image, *STARTED) as tpm:
        assert tpm.end() == 0
    before = image.read_bytes()
    code, said = refused(image, "--profile", "name=null")
    assert (code, "V100" in said) == (53, True)
    assert image.read_bytes() == before
    new = make_image(tmp_path / "new")
    code, said = refused(new, "--tpm1.2", "--profile", "name=null")
    assert (code, "V100" in said) == (2, True)


def test_v101_profiles_are_those_of_libtpms(tmp_path: Path) -> None:
    listed = blobstore_command("vtpm", "--print-profiles")
    new = make_image(tmp_path / "new")
    features = json.loads(blobstore_command("vtpm", "--print-capabilities").stdout)["features"]
    if not HAS_PROFILES:
        assert listed.returncode == 40
        code, said = refused(new, "--profile", "name=null")
        assert (code, "V101" in said) == (40, True)
        assert "cmdarg-profile" not in features
        return
    names = [one["Name"] for one in json.loads(listed.stdout)["AvailableProfiles"]]
    assert {"null", "default-v1", "custom"} <= set(names)
    assert {"cmdarg-profile", "cmdarg-print-profiles"} <= set(features)
    assert refused(new, "--profile", "name=nonsense")[0] == 2
    key = ("--key-file", key_of(new))
    with vtpm_of(new, *STARTED, "--profile", "name=default-v1") as tpm:
        active = json.loads(tpm.ioctl("--info", "0x20"))["ActiveProfile"]
        assert active["Name"] == "default-v1"
        assert tpm.end() == 0
    before = new.read_bytes()
    said = blobstore_command("vtpm", "--print-info", "0x20", new, *key).stdout.decode()
    assert json.loads(said)["ActiveProfile"] == active
    assert new.read_bytes() == before


def test_v103_info_of_an_image_leaves_it_as_it_is(image: Path) -> None:
    key = ("--key-file", key_of(image))
    answers: list[tuple[bytes, bytes]] = []
    for _ in range(2):  # without a TPM, and with one
        before = image.read_bytes()
        done = blobstore_command("vtpm", "--print-info", "0x27", image, *key)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["TPMSpecification"]["family"] == "2.0"
        assert image.read_bytes() == before
        with vtpm_of(image, *STARTED) as tpm:
            answers.append((done.stdout, tpm.ioctl("--info", "0x27")))
            assert tpm.end() == 0
    assert json.loads(answers[-1][0]) == json.loads(answers[-1][1])


def test_v106_another_root_is_that_of_all_paths(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    make_image(root / "image")
    key_of(root / "image").rename(root / "key")
    if os.geteuid() == 0:
        (root / "dev").mkdir()
        os.mknod(root / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    arguments = ["vtpm", "/image", "--key-file", "/key", "--pid", "file=/pid", "--log", "file=/log"]
    arguments += ["--ctrl", "type=unixio,path=/ctrl,terminate", "-R", str(root), *STARTED]
    command = [sys.executable, "-m", "blobstore", *arguments, "--daemon"]
    done = subprocess.run(command, env=environment(), capture_output=True, check=False, timeout=120)
    if os.geteuid() != 0:
        assert done.returncode == 20
        return
    assert done.returncode == 0, done.stderr
    process = int((root / "pid").read_text())
    assert Path(f"/proc/{process}/root").resolve() == root.resolve()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(root / "ctrl"))
        client.sendall(bytes.fromhex("0000000e"))
        assert client.recv(4) == bytes(4)
    gone = ["vtpm", "/image", "-R", str(tmp_path / "none"), *STARTED, "-p", "1"]
    assert blobstore_command(*gone).returncode == 20


def older(key: bytes | None, data: bytes) -> bytes:
    """Return a state as swtpm before 0.1 sent it."""
    body = data
    if key is not None:
        clear = hashlib.sha256(data).digest() + data
        padding = len(key) - len(clear) % len(key)
        encryptor = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).encryptor()
        body = encryptor.update(clear + bytes([padding]) * padding)
    return bytes.fromhex("0101000a0002") + (10 + len(body)).to_bytes(4) + body


def data_of(state: bytes) -> bytes:
    return state[16:]


def test_v107_states_of_older_swtpms_are_taken() -> None:
    data = data_of(VOLATILE)
    assert received(Slot.VOLATILE, older(None, data), TpmVersion.TPM_2, None) == (0, data)
    damaged = older(None, data)[:-1]
    assert received(Slot.VOLATILE, damaged, TpmVersion.TPM_2, None)[0] == 3
    wrong = older(None, data_of(PERMANENT))
    assert received(Slot.VOLATILE, wrong, TpmVersion.TPM_2, None)[0] == 3
    for key in (bytes(range(16)), bytes(range(32))):
        secret = older(key, data)
        mode = {16: "aes-cbc", 32: "aes-256-cbc"}[len(key)]
        given = StateKey(key, "binary", mode)
        assert received(Slot.VOLATILE, secret, TpmVersion.TPM_2, given) == (0, data)
        assert received(Slot.VOLATILE, secret, TpmVersion.TPM_2, None)[0] == 0xD
        wrong_key = StateKey(bytes(len(key)), "binary", mode)
        assert received(Slot.VOLATILE, secret, TpmVersion.TPM_2, wrong_key)[0] == 0x21


def says(*arguments: object, more: Sequence[object] = ()) -> str:
    return blobstore_command("vtpm", *arguments, *more).stdout.decode().strip()


def test_v108_json_has_the_spaces_of_swtpms(image: Path) -> None:
    key = ("--key-file", key_of(image))
    assert says("--print-states", image, more=key) == '{ "type": "swtpm", "states": [] }'
    with vtpm_of(image, *STARTED) as tpm:
        assert tpm.end() == 0
    said = says("--print-states", image, more=key)
    assert said.startswith('{ "type": "swtpm", "states": [ {"name": "permall", "size": ')
    assert said.endswith("} ] }")
    said = says("--print-capabilities")
    assert said.startswith('{ "type": "swtpm", "features": [ "tpm-')
    assert json.loads(said)["type"] == "swtpm"


def test_v108_a_service_manager_is_told_when_it_can_be_used(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with vtpm_of(image, *STARTED) as tpm:
            assert manager.recv(1000).startswith(b"READY=1\n")
            assert tpm.end() == 0


def test_v109_a_terminal_is_a_connection() -> None:
    ours, theirs = os.openpty()
    import tty

    tty.setraw(theirs)
    with connection(theirs) as channel:
        os.write(ours, b"command")
        assert channel.recv(100) == b"command"
        channel.sendall(b"response")
        assert os.read(ours, 100) == b"response"
    with pytest.raises(DeviceError):
        connection(os.open(shutil.__file__, os.O_RDONLY))
