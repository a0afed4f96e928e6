"""swtpm's directory: one file for each state of a TPM (F7, F16 to F18)."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blobstore.errors import OutputExistsError
from blobstore.image.files import read_file, synchronise_directory, write_file
from formats.errors import (
    DeviceBusyError,
    DeviceError,
    EmptyImageError,
    FormatError,
    device_error,
)
from formats.state.swtpm import Slot, TpmVersion

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PREFIXES: Final = {TpmVersion.TPM_2: "tpm2-00", TpmVersion.TPM_12: "tpm-00"}
_SUFFIXES: Final = {
    Slot.PERMANENT: "permall",
    Slot.VOLATILE: "volatilestate",
    Slot.SAVED: "savestate",
}
_LOCK: Final = ".lock"
#: Where libvirt keeps the state of a machine's TPM, below the directory of its UUID.
_LIBVIRT: Final = ("tpm2", "tpm1.2")


def read_directory(directory: Path) -> tuple[TpmVersion, dict[Slot, bytes]]:
    """Return the files of a TPM, as they are.

    Args:
        directory: Of swtpm, or that of a machine's TPM as libvirt makes it, in which swtpm's
            is `tpm2` or `tpm1.2` (F16).

    Raises:
        EmptyImageError: There are none.
        FormatError: There are those of two TPMs.
        DeviceBusyError: swtpm is using the directory.
        DeviceError: It cannot be read.
    """
    try:
        directory = _of_swtpm(directory)
        with _locked(directory, exclusive=False):
            return _read(directory)
    except OSError as error:
        raise DeviceError(f"cannot read directory {directory}: {error.strerror}") from error


def write_directory(
    directory: Path, version: TpmVersion, states: Mapping[Slot, bytes], *, overwrite: bool
) -> None:
    """Write the files of a TPM (F17, F18).

    Args:
        directory: Made if there is none.
        version: Of the TPM.
        states: The contents; the permanent state among them.
        overwrite: Replace a TPM's state that is there.

    Raises:
        OutputExistsError: There is a TPM's state, and not ``overwrite``.
        DeviceBusyError: swtpm is using the directory.
        DeviceError: The files cannot be written.
    """
    try:
        if directory.exists():
            with _locked(directory, exclusive=True):
                _replace(directory, version, states, overwrite=overwrite)
        else:
            _make(directory, version, states)
    except OSError as error:
        raise device_error(error, f"cannot write directory {directory}") from error


def _of_swtpm(directory: Path) -> Path:
    if _present(directory):
        return directory
    below = [directory / name for name in _LIBVIRT if _present(directory / name)]
    if len(below) > 1:
        raise FormatError(f"{directory} has the state of a TPM 1.2 and a TPM 2.0", rule="F16")
    return below[0] if below else directory


def state_file(version: TpmVersion, slot: Slot) -> str:
    """Return the name that swtpm gives the file of a state (F7)."""
    return f"{_PREFIXES[version]}.{_SUFFIXES[slot]}"


def _path(directory: Path, version: TpmVersion, slot: Slot) -> Path:
    return directory / state_file(version, slot)


def _present(directory: Path) -> dict[tuple[TpmVersion, Slot], Path]:
    paths = {(v, slot): _path(directory, v, slot) for v in TpmVersion for slot in Slot}
    return {key: path for key, path in paths.items() if os.path.lexists(path)}


def _read(directory: Path) -> tuple[TpmVersion, dict[Slot, bytes]]:
    directory.stat()  # there is one: else that is what is wrong
    present = _present(directory)
    versions = {version for version, _ in present}
    if not versions:
        raise EmptyImageError(f"there is no TPM state in {directory}", rule="F16")
    if len(versions) > 1:
        raise FormatError(f"{directory} has the state of a TPM 1.2 and a TPM 2.0", rule="F16")
    states = {}
    for (_, slot), path in present.items():
        states[slot] = read_file(path, lock=False)
    return versions.pop(), states


def _make(directory: Path, version: TpmVersion, states: Mapping[Slot, bytes]) -> None:
    """Make a directory that appears with all its files, or not at all."""
    target = Path(os.path.realpath(directory))
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    temporary.mkdir(0o700)
    try:
        for slot, state in states.items():
            write_file(_path(temporary, version, slot), state, overwrite=False)
        temporary.rename(target)  # never replaces a file, nor a directory with anything in it
        synchronise_directory(target.parent)
    except BaseException:
        for path in _present(temporary).values():
            path.unlink()
        with suppress(FileNotFoundError):
            temporary.rmdir()
        raise


def _replace(
    directory: Path, version: TpmVersion, states: Mapping[Slot, bytes], *, overwrite: bool
) -> None:
    present = _present(directory)
    if present and not overwrite:
        raise OutputExistsError(
            f"there is the state of a TPM in {directory}",
            hint="overwrite it only if that TPM is not needed: all keys in it are lost",
        )
    try:
        _replace_each(directory, version, states, present)
    except BaseException:
        if not present:  # nothing was there, so nothing is there again
            for path in _present(directory).values():
                path.unlink()
        raise


def _replace_each(
    directory: Path,
    version: TpmVersion,
    states: Mapping[Slot, bytes],
    present: Mapping[tuple[TpmVersion, Slot], Path],
) -> None:
    """Each step leaves a TPM as after a power cut, the old one or the new one (F18)."""
    kept = _path(directory, version, Slot.PERMANENT)
    for (_, slot), path in present.items():
        if slot is not Slot.PERMANENT:
            path.unlink()
    synchronise_directory(directory)
    write_file(kept, states[Slot.PERMANENT], overwrite=kept in present.values())
    for (_, slot), path in present.items():
        if slot is Slot.PERMANENT and path != kept:
            path.unlink()
    for slot, state in states.items():
        if slot is not Slot.PERMANENT:
            write_file(_path(directory, version, slot), state, overwrite=False)
    synchronise_directory(directory)


@contextmanager
def _locked(directory: Path, *, exclusive: bool) -> Iterator[None]:
    """Keep swtpm out of its directory, where it was there before (F16)."""
    path = directory / _LOCK
    try:
        import fcntl  # noqa: PLC0415  absent on Windows, as swtpm is

        # To look, a shared lock is enough, which needs no right to write.
        fd = os.open(path, os.O_RDWR if exclusive else os.O_RDONLY)
    except (FileNotFoundError, ImportError):
        yield
        return
    try:
        try:
            fcntl.lockf(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise DeviceBusyError(
                f"swtpm is using {directory}", hint="stop the TPM, or the machine it is in"
            ) from error
        yield
    finally:
        os.close(fd)
