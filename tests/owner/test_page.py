"""docs/owner.md, run as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import blobstore
from tests.support.c_client import build
from tests.support.cli import QUICK, succeeds
from tests.support.foreign import program
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "owner.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


#: For what needs a shell: curl as the other commands are run.
SHELL = 'set -eu; curl() { command curl -sS --fail-with-body "$@"; }\n'
#: Around the functions in C: a device that starts twice.
DEVICE = """
#include <stdio.h>
int main(int count, char **words) {
    static struct blobstore store;
    char state[100] = "made";
    size_t size = 0;
    int first = load(&store, words[count - 1], state, sizeof state, &size);
    int put = first == BLOBSTORE_UNWRITTEN ? save(&store, state, 4) : -1;
    blobstore_close(&store);
    state[0] = 0;
    int second = load(&store, words[count - 1], state, sizeof state, &size);
    printf("%d %d %d %.*s", first, put, second, (int)size, state);
    return 0;
}
"""


def commands() -> Iterator[list[str]]:
    """Yield the words of each command; one that goes on has its end in quotes."""
    for block in blocks("sh"):
        if "$" in block:
            yield ["bash", "-c", SHELL + block]
            continue
        for line in re.split(r"\n(?=curl |blobstore )", block):
            yield shlex.split(line.replace("$PWD", str(Path.cwd())))


def test_the_commands(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_bytes(b"key")
    (tmp_path / "vars.fd").write_bytes(b"variables")
    image = tmp_path / "machine.img"
    sections = ("--section", "uefi-variables=64K", "--section", "tpm-permanent-state=64K")
    succeeds("create", image, *sections, "--key-file", tmp_path / "key", *QUICK)
    monkeypatch.chdir(tmp_path)
    (config,) = blocks("toml")
    (tmp_path / "serve.toml").write_text(config.replace('"kvm"', str(os.getegid())))
    owner: OwnerProcess | None = None
    ending: list[OwnerProcess] = []
    verbs, methods = set(), 0
    digest = ""
    try:
        for words in commands():
            if words[:2] == ["blobstore", "serve"]:
                place = runtime
                if "--incoming" in words:  # on another machine
                    assert owner is not None
                    ending.append(owner)
                    place = tmp_path / "there"
                elif owner is not None and "--replace" not in words:
                    assert owner.end()[0] == 0
                following = OwnerProcess(
                    image, place, *words[3 if "--config" not in words else 2 :]
                )
                if "--replace" in words:
                    assert owner is not None
                    assert owner.ended() == 0
                owner = following
                continue
            assert owner is not None
            if words[0] == "blobstore":
                verbs.add(words[1])
                if "release" in words:
                    digest = ending[0].run(*words[1:]).stdout.decode().strip()
                    continue
                done = owner.run(*(digest if "..." in word else word for word in words[1:]))
            elif words[0] == "bash":
                done = subprocess.run(words, capture_output=True, timeout=60, check=False)
            else:
                methods += 1
                done = subprocess.run(
                    [program("curl"), "-sS", "--fail-with-body", *words[1:]],
                    capture_output=True,
                    timeout=60,
                    check=False,
                )
            # 28: a watch lasts until curl ends it.
            assert done.returncode == (28 if "-m" in words else 0), (words, done)
        assert owner is not None
        assert verbs == {"get", "put", "backup", "verify", "key", "owner", "reencrypt"}
        assert methods > 20
        (source,) = blocks("c")
        (tmp_path / "device.c").write_text(source + DEVICE)
        device = build(tmp_path / "device", tmp_path / "device.c")
        said = subprocess.run(
            [device, image], env=owner.environment, capture_output=True, check=True
        )
        assert said.stdout == b"62 0 0 made"
        monkeypatch.setenv("BLOBSTORE_RUNTIME_DIR", str(owner.runtime))
        for block in blocks("python"):
            exec(compile(block, "docs/owner.md", "exec"), {})
    finally:
        for one in ending if owner is None else [*ending, owner]:
            one.end()
    with blobstore.open(image, b"key", read_only=True) as store:
        assert store.get("uefi-variables") == b"variables1"
        assert store.get("tpm-volatile-state") == b"volatile"
        assert store.get("flash")[510:523] == b"\0\0newiables\0\0"
        assert (tmp_path / "copy.fd").read_bytes() == b"variables"
    for name in ("copy.img", "backup.img", "python.img"):
        with blobstore.open(tmp_path / name, b"key", read_only=True) as copy:
            assert copy.verify().ok
