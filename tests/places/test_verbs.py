"""P10: every verb that takes an image takes a place; what cannot be there, it says."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from blobstore.cli.main import cli
from blobstore.cli.types import IMAGE, ImageType
from tests.nbd.servers import nbdkit, qemu_nbd
from tests.support.cli import QUICK
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.places.support import Places


ROOT = Path(__file__).resolve().parents[2]
MACHINE = ROOT / "examples" / "machine"


class Shell:
    """Runs `blobstore` in a directory, and remembers which verbs it ran."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ran: set[str] = set()
        for name in ("key", "other"):
            directory.joinpath(name).write_text(name)

    def run(self, *words: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        texts = [str(word) for word in words]
        self.ran |= {texts[0], " ".join(texts[:2])}
        return subprocess.run(
            [sys.executable, "-m", "blobstore", *texts],
            input=stdin,
            capture_output=True,
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=120,
            check=False,
        )

    def __call__(self, *words: object, stdin: bytes = b"") -> str:
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, (words, done.stderr.decode())
        return done.stdout.decode(errors="replace")

    def fails(self, *words: object) -> tuple[int, str]:
        done = self.run(*words)
        assert done.returncode, words
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done.returncode, done.stderr.decode()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    directory = tmp_path / "here"
    directory.mkdir()
    return Shell(directory)


def verbs_with_images() -> Iterator[str]:
    """Yield the verbs that take an image, by the type of their arguments."""

    def below(command: click.Command, name: str) -> Iterator[str]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for verb in command.list_commands(context):
                found = command.get_command(context, verb)
                assert found is not None
                yield from below(found, f"{name} {verb}".strip())
        elif any(isinstance(one.type, ImageType) for one in command.params) or name == "pack":
            yield name

    return below(cli, "")


@pytest.mark.slow
def test_p10_every_verb_takes_a_place(places: Places, shell: Shell) -> None:
    key, other = ("--key-file", "key"), ("--new-key-file", "other")
    image = places.new()
    shell("pack", MACHINE / "manifest.toml", "-o", image, *key, *QUICK)
    assert "adapter-vpd" in shell("ls", image, *key)
    assert image in shell("info", image, *key)
    assert "no problems" in shell("verify", image, *key)
    shell("put", image, "tpm-volatile-state", "key", *key)
    shell("put", image, "tpm-volatile-state", "other", *key)
    assert shell("get", image, "tpm-volatile-state", *key) == "other"
    shell("restore", image, "tpm-volatile-state", *key)
    assert shell("get", image, "tpm-volatile-state", *key) == "key"
    assert "SN" in shell("show", image, "adapter-vpd", *key)
    shell("edit", image, "adapter-vpd", "read-only.SN=4711", *key)
    assert "4711" in shell("show", image, "adapter-vpd", *key)
    shell("unpack", image, "-o", "unpacked", *key)
    shell("export", image, "state", "--to", "raw", "--name", "tpm-volatile-state", *key)
    shell("import", image, "state", "--from", "raw", "--name", "again", "--max-size", 100, *key)
    shell("mv", image, "again", "moved", *key)
    shell("resize", image, "moved", 200, *key)
    shell("rm", image, "moved", *key)
    shell("compact", image, *key)
    shell("scrub", image, *key)
    grown = shell.run("grow", image, "40MiB", *key)
    assert grown.returncode == (0 if places.kind == "rbd" else 64), grown.stderr

    shell("key", "add", image, *key, *other, *QUICK)
    assert "keyslot 1" in shell("key", "test", image, "--key-file", "other")
    assert len(shell("key", "list", image).splitlines()) == 3
    shell("key", "export", image, "-o", "volume-key", "--force", *key)
    options = {"state": "active", "new-secret": "k", "keyslot": 3, "iter-time": 10}
    shell("amend", image, "--json", json.dumps(options), "--object", "secret,id=k,data=x", *key)
    shell("key", "remove", image, "--key-slot", 3)
    shell("token", "add", image, "--key-slot", 1, "--key-description", "a key")
    token = shell("token", "export", image, 0)
    shell("token", "unassign", image, 0, "--key-slot", 1)
    shell("token", "assign", image, 0, "--key-slot", 1)
    shell("token", "remove", image, 0)
    shell("token", "import", image, "-", stdin=token.encode())
    assert "a key" in shell("token", "list", image)
    shell("key", "remove", image, "--key-file", "other", "--with-tokens")
    shell("key", "change", image, *key, *other, *QUICK)
    shell("key", "change", image, "--key-file", "other", "--new-key-file", "key", *QUICK)

    assert "LUKS" in shell("header", "dump", image) or "version" in shell("header", "dump", image)
    shell("header", "backup", image, "backup")
    shell("header", "restore", image, "backup")
    shell("header", "detach", image, "apart")
    assert shell("get", image, "tpm-volatile-state", "--header", "apart", *key) == "key"
    shell("header", "attach", image, "apart")

    clone, disk = places.new(), places.new()
    shell("clone", image, clone, "--tpm", "keep", *key, *other, *QUICK)
    assert shell("diff", image, clone, *key, "--other-key-file", "other") == ""
    shell("convert", image, disk, "--to", "qcow2", *key)
    assert "no errors" in shell("check", disk).lower() or shell("check", disk)
    assert shell("measure", disk)
    shell("snapshot", "create", disk, "before")
    shell("put", disk, "tpm-volatile-state", "other")
    assert "before" in shell("snapshot", "list", disk)
    assert "tpm-volatile-state" in shell("snapshot", "diff", disk, "before")
    assert shell("get", disk, "tpm-volatile-state", "--snapshot", "before") == "key"
    shell("snapshot", "apply", disk, "before")
    assert shell("get", disk, "tpm-volatile-state") == "key"
    shell("snapshot", "delete", disk, "before")
    shell("backup", disk, "copy.qcow2")
    assert shell("get", "copy.qcow2", "tpm-volatile-state") == "key"
    assert shell.fails("backup", disk, image)[0] == 40
    shell("reencrypt", image, *key, *QUICK)
    shell("copy", image, "whole")
    assert shell("get", "whole", "tpm-volatile-state", *key) == "key"
    assert "LUKS header information" in shell("luks", "dump", image)
    shell("luks", "is", image)
    shell("luks", "config", image, "--label", "a label")
    shell("luks", "repair", image)
    shell("key", "destroy", image, "--force")
    shell("luks", "format", image, *key, "--force", *QUICK)
    shell("key", "test", image, *key)
    assert "LUKS2" in shell("luks", "convert", image, "--to", "luks2", "--force")
    shell("create", image, "--section", "a=100", "--no-encryption", "--force")
    assert shell("ls", image)
    shell("put", image, "a", "-", stdin=b"in the clear")
    shell("encrypt", image, "--header", "new-header", *key, *QUICK)
    assert shell("get", image, "a", "--header", "new-header", *key) == "in the clear"
    shell("decrypt", image, "--header", "new-header", *key)
    assert shell("get", image, "a") == "in the clear"
    not_run = {*verbs_with_images()} - shell.ran
    owners = {"serve", "vtpm", "mount", "owner show", "owner release", "owner take-over"}
    assert not_run == owners


@pytest.mark.slow
def test_p13_verbs_find_the_owner_of_a_place(places: Places, shell: Shell, runtime: Path) -> None:
    image = places.new()
    key, other = ("--key-file", "key"), ("--new-key-file", "other")
    shell("create", image, "--section", "a=100", *key, *QUICK)
    owner = OwnerProcess(image, runtime, "--key-file", shell.directory / "key")
    (entry,) = runtime.glob("*.sock")
    assert len(entry.stem) == 32
    shell("put", image, "a", "key")  # without a key: the owner has it
    assert shell("get", image, "a") == "key"
    assert "process" in shell("owner", "show", image)
    assert image in shell("info", image)
    # Its LUKS header is changed by the owner (P14).
    assert "keyslot 1" in shell("key", "add", image, *key, *other, *QUICK)
    assert "keyslot 1" in shell("key", "test", image, "--key-file", "other")
    shell("backup", image, "copy")
    assert shell("get", "copy", "a", "--key-file", "other") == "key"
    code, said = shell.fails("put", image, "a", "other", "--direct", *key)
    assert code == 23
    assert f"owns {image} [O93]" in said
    assert shell("get", image, "a", "--direct", *key) == "key"
    digest = shell("owner", "release", image)
    shell("put", image, "a", "other", "--direct", *key)
    assert digest
    shell("owner", "take-over", image)
    assert shell("get", image, "a") == "other"
    next_owner = OwnerProcess(image, runtime, "--replace", "--key-file", shell.directory / "key")
    assert owner.ended() == 0
    assert shell("get", image, "a") == "other"
    assert next_owner.end(signal.SIGTERM)[0] == 0
    shell("put", image, "a", "key", *key)


@pytest.mark.interop
def test_p10_what_is_wrong_with_a_place_is_said(shell: Shell, tmp_path: Path) -> None:
    for place, code, message in (
        ("nbd+unix:///x", 2, "does not say where the server is"),
        ("nbd+vsock://1/x", 2, "is not a place"),
        ("nbd://h/x?tls-certificates=d", 2, "has an option"),
        ("nbds+unix:///x?socket=s", 2, "does not say whom to expect"),
        ("rbd:x", 2, "does not name an image"),
        (f"nbd+unix:///x?socket={tmp_path}/none", 20, f"{tmp_path}/none"),
        ("nbd://localhost:1/x", 20, "localhost:1"),
        (f"rbd:rbd/x:conf={tmp_path}/none", 20, "cannot read"),
        ("./rbd:x", 20, "cannot open rbd:x"),
        ("./nbd:x", 20, "cannot open nbd:x"),
        ("nbd:x", 20, "cannot open nbd:x"),
    ):
        found, said = shell.fails("get", place, "a")
        assert (found, message in said) == (code, True), (place, said)
    shell("create", "./rbd:x", "--section", "a=100", "--no-encryption")
    assert shell.directory.joinpath("rbd:x").stat().st_size
    assert shell("ls", "./rbd:x")
    assert shell("ls", shell.directory / "rbd:x")


@pytest.mark.interop
def test_what_a_server_does_wrong_is_said(shell: Shell, tmp_path: Path) -> None:
    create = ("--section", "a=100", "--no-encryption")
    with nbdkit(tmp_path / "s", "-r", "memory", "16M"):
        found, said = shell.fails("create", f"nbd+unix:///?socket={tmp_path}/s", *create)
        assert (found, "takes no writes" in said) == (22, True), said
    with nbdkit(tmp_path / "s", "--filter=error", "memory", "16M", "error-pwrite-rate=100%"):
        found, said = shell.fails("create", f"nbd+unix:///?socket={tmp_path}/s", *create)
        assert (found, "refuses WRITE" in said) == (20, True), said
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    with qemu_nbd(tmp_path / "s", tmp_path / "disk", "--format=raw", "--export-name=there"):
        found, said = shell.fails("ls", f"nbd+unix:///not-there?socket={tmp_path}/s")
        assert (found, "not-there" in said) == (20, True), said
    for answer in (b"", b"no NBD server at all, but something that talks"):
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / f"{len(answer)}"))
            listening.listen()
            place = f"nbd+unix:///?socket={tmp_path}/{len(answer)}"

            def say(listening: socket.socket = listening, answer: bytes = answer) -> None:
                with listening.accept()[0] as connection:
                    connection.sendall(answer)

            with ThreadPoolExecutor(1) as executor:
                executor.submit(say)
                assert shell.fails("ls", place)[0] in (20, 30)


def test_p10_places_complete_as_paths_do() -> None:
    command = click.Command("x", params=[click.Argument(["image"], type=IMAGE)])
    (item,) = IMAGE.shell_complete(click.Context(command), command.params[0], "rbd:p")
    assert (item.value, item.type) == ("rbd:p", "file")


@pytest.mark.interop
def test_p16_a_table_and_a_bare_binary_are_files(shell: Shell) -> None:
    place = "nbd+unix:///?socket=s"
    manifest = MACHINE / "manifest.toml"
    found, said = shell.fails("pack", manifest, "-o", place, "--raw", "adapter-vpd")
    assert (found, "P16" in said) == (40, True), said
    shell.directory.joinpath("table").write_text("serial\n1\n")
    found, said = shell.fails(
        "pack", manifest, "-o", "nbd://h/{serial}", "--table", "table", "--key-file", "key"
    )
    assert (found, "P16" in said) == (71, True), said
