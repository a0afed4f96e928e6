"""Programs and libraries of others that are measured beside this project's.

Programs come from the system. Packages from PyPI go into virtual environments of
their own, made when they are first used.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class MissingPeerError(Exception):
    """Something to compare with is not there."""


def program(name: str, package: str) -> str:
    """Return the path of a program.

    Args:
        name: Of the program.
        package: The Debian package that has it.
    """
    path = shutil.which(name, path=_SEARCH)
    if path is None:
        raise MissingPeerError(f"{name} is not installed (Debian package {package})")
    return path


def version(path: str) -> str:
    """Return the version that a program says it is."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    number = re.search(r"\d+(\.\d+)+", said.stdout)
    return number[0] if number else "of unknown version"


class PeerDirectory:
    """Where packages and libraries are kept from one run to the next."""

    def __init__(self, path: Path, *, install: bool = True) -> None:
        """Use a directory, which need not exist; ``install`` permits to ask PyPI."""
        self._path = path
        self._install = install

    def python(self, package: str) -> Path:
        """Return the Python of a virtual environment with a package from PyPI."""
        directory = self._path / package
        python, done = directory / "bin" / "python", directory / "done"
        if done.exists():
            return python
        if not self._install:
            raise MissingPeerError(f"{package} was not to be installed from PyPI")
        print(f"installing {package} from PyPI in {directory}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        asked = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", package],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode:
            raise MissingPeerError(f"{package} could not be installed: {_last_line(asked.stderr)}")
        done.touch()
        return python

    def version(self, package: str) -> str:
        """Return the version of a package that `python` was asked for."""
        code = f"from importlib.metadata import version; print(version({package!r}))"
        python = self._path / package / "bin" / "python"
        return subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()

    def library(self, source: Path, *libraries: str) -> ctypes.CDLL:
        """Compile a source file in C and return it as a library."""
        self._path.mkdir(parents=True, exist_ok=True)
        target = self._path / f"{source.stem}.so"
        links = [f"-l{name}" for name in libraries]
        compiler = program("gcc", "gcc")
        made = subprocess.run(
            [compiler, "-O3", "-shared", "-fPIC", "-o", target, source, *links],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            # The first line is what came of an #include, as a rule.
            raise MissingPeerError(f"gcc failed: {made.stderr.strip().splitlines()[0]}")
        return ctypes.CDLL(str(target))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
