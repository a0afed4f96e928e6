"""The scripts behind make set up what they say, and name what they cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def call(
    *command: str | Path, path: str | Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    if path is not None:
        environment["PATH"] = str(path)
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def put_program(directory: Path, name: str, script: str) -> None:
    directory.joinpath(name).write_text(f"#!/bin/sh\n{script}\n")
    directory.joinpath(name).chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A copy of the tools, whose list a test may change."""
    return Path(shutil.copytree(TOOLS, tmp_path / "tools"))


@pytest.mark.interop
def test_system_packages_is_content_here() -> None:
    result = call(TOOLS / "system-packages", "--check")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["no-such-program", "libno-such-library.so.0", "/no/such/file"])
def test_system_packages_names_the_package_of_what_is_missing(tools: Path, name: str) -> None:
    with tools.joinpath("system-packages.list").open("a") as file:
        file.write(f"{name} no-such-package\n")
    result = call(tools / "system-packages", "--check")
    assert result.returncode == 1
    assert f"  no-such-package: there is no {name}\n" in result.stderr


@pytest.mark.parametrize("version", ["7.2.22", "8.2.2"])
def test_system_packages_refuses_old_qemu(tmp_path: Path, version: str) -> None:
    put_program(tmp_path, "qemu-img", f"echo 'qemu-img version {version} (Debian)'")
    result = call(TOOLS / "system-packages", "--check", path=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 1
    assert f": qemu-img is version {version[0]}, older than 9\n" in result.stderr


def test_system_packages_installs_nothing_on_request_to_check(tools: Path, tmp_path: Path) -> None:
    tools.joinpath("system-packages.list").write_text("no-such-program no-such-package\n")
    for name in ("apt-get", "sudo"):
        put_program(tmp_path, name, f"touch {tmp_path}/called")
    path = f"{tmp_path}:{os.environ['PATH']}"
    call(tools / "system-packages", "--check", path=path)
    assert not tmp_path.joinpath("called").exists()
    call(tools / "system-packages", path=path)
    assert tmp_path.joinpath("called").exists()


def test_system_packages_fails_where_installing_did_not_help(tools: Path, tmp_path: Path) -> None:
    tools.joinpath("system-packages.list").write_text("no-such-program no-such-package\n")
    put_program(tmp_path, "apt-get", "exit 0")
    put_program(tmp_path, "sudo", "exit 1")
    result = call(tools / "system-packages", path=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 1


def test_find_python_takes_the_first_that_works(tmp_path: Path) -> None:
    put_program(tmp_path, "python3.13", "exit 127")
    put_program(tmp_path, "python3.12", f'exec "{sys.executable}" "$@"')
    put_program(tmp_path, "python3", f'exec "{sys.executable}" "$@"')
    result = call(TOOLS / "find-python", path=tmp_path, PYTHON="")
    assert (result.returncode, result.stdout) == (0, f"{tmp_path}/python3.12\n")


def test_find_python_says_what_to_install_where_none_works(tmp_path: Path) -> None:
    put_program(tmp_path, "cat", "exec /bin/cat")
    put_program(tmp_path, "python3", "exit 1")
    result = call(TOOLS / "find-python", path=tmp_path, PYTHON="")
    assert (result.returncode, result.stdout) == (1, "")
    assert "apt-get install python3-venv" in result.stderr
