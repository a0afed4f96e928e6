"""What `import luks` gives and costs, and the names that `blobstore` gives."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from luks import errors

if TYPE_CHECKING:
    from types import ModuleType


def _imported(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after a statement."""
    script = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_luks_costs_nothing() -> None:
    heavy = {"cryptography", "json", "dataclasses", "hashlib", "logging", "uuid"}
    assert not _imported("import luks") & heavy
    assert not _imported("import luks.errors") & heavy
    assert not _imported("import luks; luks.StorageError") & heavy
    assert not _imported("import luks; luks.Secret(b'x')") & heavy


def test_opening_does_not_import_what_only_creating_needs() -> None:
    creating = {
        "uuid",
        "luks.payload.creation",
        "luks.keys.benchmark",
        "luks.header.writer",
        "numpy",
        "logging",
    }
    assert not _imported("import luks; luks.open") & creating


def test_every_public_name_is_there() -> None:
    assert len(set(luks.__all__)) == len(luks.__all__)
    for name in luks.__all__:
        value = getattr(luks, name)
        assert getattr(value, "__doc__", None) or not callable(value), name
    assert set(luks.__all__) <= set(dir(luks))
    assert set(errors.__all__) <= set(luks.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        luks.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_exit_codes_are_those_documented() -> None:
    codes: dict[type[luks.StorageError], int] = {
        luks.LuksHeaderError: 35,
        luks.LuksExistsError: 36,
        luks.UnlockError: 50,
        luks.NoKeyslotMatchError: 51,
        luks.SecretRequiredError: 52,
        luks.PolicyError: 53,
        luks.KeyslotsFullError: 54,
        luks.HeaderMismatchError: 58,
        luks.KeyslotInUseError: 59,
    }
    for kind, code in codes.items():
        assert kind.exit_code == code
        assert f"{kind.__name__:20}" in str(errors.__doc__)
        assert f" {code}   " in str(errors.__doc__)
        assert issubclass(kind, luks.StorageError)
    assert len(set(codes.values())) == len(codes)


def test_another_package_named_formats_is_told() -> None:
    script = """
import sys, types
sys.modules["formats"] = types.ModuleType("formats")
try:
    import luks
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "'formats'" in done.stdout
    assert "another distribution" in done.stdout


@pytest.mark.parametrize("package", [blobstore, luks], ids=["blobstore", "luks"])
def test_no_public_name_is_that_of_a_module(package: ModuleType) -> None:
    """Importing the module would put it in the place of what has its name."""
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__)
