"""docs/owner.md, run as it stands there."""

from __future__ import annotations

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
            yield shlex.split(line)


def test_the_commands(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_bytes(b"key")
    (tmp_path / "vars.fd").write_bytes(b"variables")
    image = tmp_path / "machine.img"
    sections = ("--section", "uefi-variables=64K", "--section", "tpm-permanent-state=64K")
    succeeds("create", image, *sections, "--key-file", tmp_path / "key", *QUICK)
    monkeypatch.chdir(tmp_path)
    owner: OwnerProcess | None = None
    verbs, methods = set(), 0
    try:
        for words in commands():
            if words[:2] == ["blobstore", "serve"]:
                if owner is not None:
                    assert owner.end()[0] == 0
                owner = OwnerProcess(image, runtime, *words[3:])
                continue
            assert owner is not None
            if words[0] == "blobstore":
                verbs.add(words[1])
                done = owner.run(*words[1:])
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
            assert done.returncode == 0, (words, done)
        assert verbs == {"get", "put"}
        assert methods > 10
        assert owner is not None
        (source,) = blocks("c")
        (tmp_path / "device.c").write_text(source + DEVICE)
        device = build(tmp_path / "device", tmp_path / "device.c")
        said = subprocess.run(
            [device, image], env=owner.environment, capture_output=True, check=True
        )
        assert said.stdout == b"62 0 0 made"
        for block in blocks("python"):
            exec(compile(block, "docs/owner.md", "exec"), {})
    finally:
        if owner is not None:
            owner.end()
    with blobstore.open(image, b"key", read_only=True) as store:
        assert store.get("uefi-variables") == b"variables1"
        assert store.get("tpm-volatile-state") == b"volatile"
        assert (tmp_path / "copy.fd").read_bytes() == b"variables"
