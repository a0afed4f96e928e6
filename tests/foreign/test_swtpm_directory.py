"""swtpm's directory appears whole, or changes in steps that each leave a TPM (F5, F16 to F18)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from blobstore.errors import OutputExistsError
from blobstore.foreign import swtpm_directory
from blobstore.foreign.exporting import export_state
from blobstore.foreign.importing import import_state
from blobstore.image.files import write_file
from formats.errors import DeviceError, FormatError
from formats.state.swtpm import PlainState, Slot, encode_state
from tests.foreign.samples import (
    PERMANENT,
    TPM_12,
    VOLATILE,
    directory,
    encode_file,
    files,
    recorded,
)
from tests.support.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Callable


def test_f16_two_tpms_in_one_directory_are_refused(tmp_path: Path) -> None:
    source = directory(tmp_path / "tpm", permall=PERMANENT)
    (source / "tpm-00.permall").write_bytes(TPM_12)
    with pytest.raises(FormatError, match=r"a TPM 1\.2 and a TPM 2\.0"):
        import_state(open_store(recorded()), source, "swtpm-dir")


@pytest.mark.parametrize("exists", [False, True])
def test_f5_f17_what_cannot_be_written_whole_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    target = tmp_path / "out"
    if exists:
        target.mkdir()
    store = open_store(recorded())
    import_state(
        store, encode_file({Slot.PERMANENT: PERMANENT, Slot.VOLATILE: VOLATILE}), "swtpm-file"
    )
    real, written = write_file, []

    def full_disk(path: Path, state: bytes, **options: bool) -> None:
        written.append(path)
        if len(written) == 2:
            raise DeviceError("no space left")
        real(path, state, **options)

    with monkeypatch.context() as patched:
        patched.setattr(swtpm_directory, "write_file", full_disk)
        with pytest.raises(DeviceError):
            export_state(store, target, "swtpm-dir")
    assert len(written) == 2
    assert list(tmp_path.rglob("*")) == ([target] if exists else [])
    export_state(store, target, "swtpm-dir")
    assert len(files(target)) == 2


def test_f18_each_step_of_replacing_a_tpm_leaves_one_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step leaves a volatile state beside a permanent one of another TPM."""
    new = encode_state(PlainState(bytes.fromhex("0003ab364723") + b"new"))
    new_volatile = encode_state(PlainState(bytes.fromhex("000445637889") + b"new"))
    store = open_store(recorded())
    import_state(
        store, encode_file({Slot.PERMANENT: new, Slot.VOLATILE: new_volatile}), "swtpm-file"
    )
    target = directory(tmp_path / "tpm", permall=PERMANENT, volatilestate=VOLATILE)
    seen = []

    def watch(function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            seen.append(files(target))
            result = function(*arguments, **options)
            seen.append(files(target))
            return result

        return watched

    monkeypatch.setattr(swtpm_directory, "write_file", watch(write_file))
    monkeypatch.setattr(Path, "unlink", watch(Path.unlink))
    export_state(store, target, "swtpm-dir", overwrite=True)
    volatiles = {PERMANENT: {VOLATILE, None}, new: {new_volatile, None}}
    for state in seen:
        permanent = state["tpm2-00.permall"]
        assert state.get("tpm2-00.volatilestate") in volatiles[permanent]
    assert files(target) == {"tpm2-00.permall": new, "tpm2-00.volatilestate": new_volatile}


def test_f5_other_files_in_a_directory_are_left_alone(tmp_path: Path) -> None:
    store = open_store(recorded())
    import_state(store, encode_file({Slot.PERMANENT: PERMANENT}), "swtpm-file")
    target = directory(tmp_path / "tpm")
    (target / "log").write_bytes(b"mine")
    export_state(store, target, "swtpm-dir")
    assert files(target) == {"log": b"mine", "tpm2-00.permall": PERMANENT}
    (tmp_path / "file").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(DeviceError):
            export_state(store, tmp_path / "file", "swtpm-dir", overwrite=overwrite)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_f5_f18_a_tpm_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    """Also one of another version, of which nothing remains."""
    store = open_store(recorded())
    import_state(store, encode_file({Slot.PERMANENT: PERMANENT}), "swtpm-file")
    target = directory(tmp_path / "tpm")
    old = {"tpm-00.permall": TPM_12, "tpm-00.savestate": TPM_12}
    for name, content in old.items():
        (target / name).write_bytes(content)
    with pytest.raises(OutputExistsError):
        export_state(store, target, "swtpm-dir")
    assert files(target) == old
    export_state(store, target, "swtpm-dir", overwrite=True)
    assert files(target) == {"tpm2-00.permall": PERMANENT}
