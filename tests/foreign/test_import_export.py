"""Imports are all or nothing, exports whole or not at all (F1 to F7, F12, F16 to F22)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.foreign.exporting import export_state
from blobstore.foreign.importing import import_state
from blobstore.image.small_disks import qcow2_with
from formats.devices.device import MemoryDevice
from formats.devices.file import FileDevice
from formats.errors import (
    DeviceBusyError,
    DeviceError,
    EmptyImageError,
    ForeignImageError,
    FormatError,
    StorageError,
    TruncatedImageError,
    UnsupportedError,
)
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.opening import open_image
from formats.state.swtpm import PlainState, Slot, encode_state
from luks import PolicyError, SecretRequiredError
from tests.foreign.samples import (
    BOOT,
    ENCRYPTED,
    KEY,
    NAMES,
    PERMANENT,
    TPM_12,
    VOLATILE,
    directory,
    encode_file,
    files,
    flash,
    recorded,
    uefi_json,
)
from tests.support.devices import RecordingDevice, crash_states
from tests.support.stores import UNWRITTEN, contents, image, open_store, spec

if TYPE_CHECKING:
    from pathlib import Path


def test_f3_f7_sections_get_the_worst_cases_of_libtpms(tmp_path: Path) -> None:
    store = open_store(recorded(spec("tpm-permanent-state", 300_000)))
    source = directory(tmp_path / "tpm", permall=PERMANENT, volatilestate=VOLATILE)
    assert import_state(store, source, "swtpm-dir") == NAMES[:2]
    sections = {section.name: section for section in store.sections()}
    assert sections["tpm-permanent-state"].max_size == 300_000  # larger, so it stays
    assert sections["tpm-volatile-state"].max_size == 65_551
    assert sections["tpm-volatile-state"].type == "tpm2-volatile"
    assert contents(store) == {NAMES[0]: PERMANENT, NAMES[1]: VOLATILE}


def test_f7_an_image_has_room_for_several_tpms(tmp_path: Path) -> None:
    store = open_store(recorded())
    source = directory(tmp_path / "tpm", permall=PERMANENT)
    import_state(store, source, "swtpm-dir", name="first")
    import_state(store, encode_file({Slot.PERMANENT: PERMANENT}), "swtpm-file", name="second")
    assert set(store) == {"first-permanent-state", "second-permanent-state"}
    export_state(store, tmp_path / "out", "swtpm-dir", name="second")
    assert files(tmp_path / "out") == {"tpm2-00.permall": PERMANENT}
    with pytest.raises(blobstore.BlobNotFoundError):
        export_state(store, tmp_path / "none", "swtpm-dir")
    assert not (tmp_path / "none").exists()


#: What a directory holds, what importing it raises, and what the message says.
BAD_DIRECTORIES: dict[str, tuple[dict[str, bytes], type[StorageError], str]] = {
    "nothing": ({}, EmptyImageError, "no TPM state"),
    "no permanent state": ({"volatilestate": VOLATILE}, EmptyImageError, "no permanent state"),
    "empty file": ({"permall": b""}, TruncatedImageError, "cut short"),
    "zeros": ({"permall": bytes(1362)}, FormatError, "does not begin"),
    "cut": ({"permall": PERMANENT[:-1]}, TruncatedImageError, "cut short"),
    "a second file that is cut": (
        {"permall": PERMANENT, "volatilestate": VOLATILE[:50]},
        TruncatedImageError,
        "the volatile state is cut short",
    ),
    "another format": ({"permall": b"GIF89a" * 300}, FormatError, "does not begin"),
    "swapped": (
        {"permall": VOLATILE, "volatilestate": PERMANENT},
        FormatError,
        "is not that of a TPM",
    ),
    "a TPM 1.2 in a TPM 2.0": ({"permall": TPM_12}, FormatError, "is not that of a TPM"),
    "encrypted": ({"permall": ENCRYPTED}, SecretRequiredError, "--key"),
}


@pytest.mark.parametrize("case", BAD_DIRECTORIES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_f1_f2_damage_is_never_absence_and_changes_nothing(
    tmp_path: Path, case: str, overwrite: bool
) -> None:
    content, error, match = BAD_DIRECTORIES[case]
    source = directory(tmp_path / "tpm", **content)
    device = recorded(spec(NAMES[0], 300_000, PERMANENT if overwrite else None))
    store = open_store(device)
    before = device.content
    with pytest.raises(error, match=match) as raised:
        import_state(store, source, "swtpm-dir", overwrite=overwrite)
    assert type(raised.value) is error
    assert device.content == before
    assert {f"tpm2-00.{name}": c for name, c in content.items()} == files(source)


def test_f2_a_source_that_is_not_there_is_a_device_error(tmp_path: Path) -> None:
    store = open_store(recorded())
    (tmp_path / "file").write_bytes(PERMANENT)
    for source, form in (
        (tmp_path / "none", "swtpm-dir"),
        (tmp_path / "none", "swtpm-file"),
        (tmp_path / "file", "swtpm-dir"),
        (tmp_path, "swtpm-file"),
    ):
        with pytest.raises(DeviceError):
            import_state(store, source, form)
    assert len(store) == 0


def test_f3_what_was_written_is_replaced_only_when_asked(tmp_path: Path) -> None:
    device = recorded()
    store = open_store(device)
    old = directory(tmp_path / "old", permall=PERMANENT, volatilestate=VOLATILE)
    import_state(store, old, "swtpm-dir")
    new = encode_state(PlainState(bytes.fromhex("0003ab364723") + b"new"))
    source = directory(tmp_path / "new", permall=new)
    before = device.content
    with pytest.raises(blobstore.SectionExistsError, match="was written already"):
        import_state(store, source, "swtpm-dir")
    assert device.content == before
    import_state(store, source, "swtpm-dir", overwrite=True)
    # A volatile state belongs to one permanent state (F7).
    assert contents(store) == {NAMES[0]: new}
    assert store.verify().ok


def test_f3_a_volatile_state_alone_keeps_a_new_tpm_away(tmp_path: Path) -> None:
    store = open_store(recorded(spec(NAMES[1], 70_000, VOLATILE)))
    with pytest.raises(blobstore.SectionExistsError):
        import_state(store, directory(tmp_path / "tpm", permall=PERMANENT), "swtpm-dir")


def test_f3_a_registered_section_is_filled(tmp_path: Path) -> None:
    store = open_store(recorded(spec(NAMES[0], 1), spec(NAMES[1], 1)))
    import_state(store, directory(tmp_path / "tpm", permall=PERMANENT), "swtpm-dir")
    assert contents(store) == {NAMES[0]: PERMANENT, NAMES[1]: UNWRITTEN}
    assert store.section(NAMES[0]).max_size == 256 << 10


def test_f1_a_section_of_one_copy_is_refused_before_anything_changes(tmp_path: Path) -> None:
    device = recorded(spec(NAMES[0], 300_000, copies=1))
    before = device.content
    with pytest.raises(blobstore.SectionMismatchError, match="one copy"):
        import_state(open_store(device), directory(tmp_path / "t", permall=PERMANENT), "swtpm-dir")
    assert device.content == before


def test_f1_every_crash_of_an_import_leaves_the_old_tpm_or_the_new(tmp_path: Path) -> None:
    old = {NAMES[0]: PERMANENT, NAMES[1]: VOLATILE}
    before = image(
        [spec(NAMES[0], 256 << 10, PERMANENT), spec(NAMES[1], 65_551, VOLATILE)],
        free=1 << 20,
        block_size=4096,
    )
    new = encode_state(PlainState(bytes.fromhex("0003ab364723") + b"new" * 500))
    source = directory(tmp_path / "tpm", permall=new)
    device = RecordingDevice(before)
    store = open_store(device)
    import_state(store, source, "swtpm-dir", overwrite=True)
    device.mark("done")
    found = []
    for crash in crash_states(before, device.log, exhaustive=6, samples=20):
        state = contents(open_store(crash.content, read_only=True))
        assert state in (
            (old, {NAMES[0]: new}) if "done" not in crash.marks else ({NAMES[0]: new},)
        )
        found.append(state == old)
    assert {True, False} == set(found)


def test_f12_encrypted_state_goes_decrypted_into_an_encrypted_store_only(tmp_path: Path) -> None:
    source = directory(tmp_path / "tpm", permall=ENCRYPTED)
    clear = open_store(recorded(encrypted=False))
    with pytest.raises(PolicyError, match="F12"):
        import_state(clear, source, "swtpm-dir", key=KEY)
    assert len(clear) == 0
    import_state(clear, source, "swtpm-dir", key=KEY, allow_unprotected=True)
    store = open_store(recorded())
    import_state(store, source, "swtpm-dir", key=KEY)
    assert contents(store) == contents(clear)
    assert store.get(NAMES[0]) == encode_state(PlainState(bytes.fromhex("0003ab364723") + b"p"))


def test_f12_a_key_for_state_in_the_clear_is_a_policy_error(tmp_path: Path) -> None:
    source = directory(tmp_path / "tpm", permall=PERMANENT)
    store = open_store(recorded())
    with pytest.raises(PolicyError, match="not encrypted"):
        import_state(store, source, "swtpm-dir", key=KEY)
    assert len(store) == 0


def test_f12_state_put_in_encrypted_is_not_encrypted_twice(tmp_path: Path) -> None:
    store = open_store(recorded(spec(NAMES[0], 9999, ENCRYPTED)))
    for key in (None, KEY):
        with pytest.raises(PolicyError, match="swtpm encrypted"):
            export_state(store, tmp_path / "out", "swtpm-dir", key=key)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("form", "content"),
    [("ovmf-vars", flash()), ("uefi-vars", uefi_json(BOOT)), ("raw", b"any \0 bytes")],
)
def test_f4_f6_what_is_imported_comes_out_byte_for_byte(
    tmp_path: Path, form: str, content: bytes
) -> None:
    store = open_store(recorded())
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    name = "any" if form == "raw" else None
    (section,) = import_state(store, source, form, name=name)
    assert store.get(section) == content
    export_state(store, target, form, name=name)
    assert target.read_bytes() == content
    with pytest.raises(blobstore.OutputExistsError):
        export_state(store, target, form, name=name)
    with pytest.raises(blobstore.SectionExistsError):
        import_state(store, source, form, name=name)
    stream = io.BytesIO()
    export_state(store, stream, form, name=name)
    assert stream.getvalue() == content
    import_state(store, io.BytesIO(content), form, name=name, overwrite=True)
    export_state(store, target, form, name=name, overwrite=True)
    assert files(tmp_path) == {"source": content, "target": content}


def test_f6_raw_grows_its_section_and_takes_a_worst_case() -> None:
    store = open_store(recorded(spec("small", 3)))
    import_state(store, io.BytesIO(b"x" * 5000), "raw", name="small")
    assert store.section("small").max_size == 5000
    import_state(store, io.BytesIO(b""), "raw", name="new", max_size=100)
    assert (store.get("new"), store.section("new").max_size) == (b"", 100)
    with pytest.raises(blobstore.BlobTooLargeError):
        import_state(store, io.BytesIO(b"12345"), "raw", name="tiny", max_size=4)
    assert "tiny" not in store


def test_f20_a_flash_is_a_window_of_exactly_its_size() -> None:
    store = open_store(recorded())
    import_state(store, io.BytesIO(flash()), "ovmf-vars")
    section = store.section("uefi-variables")
    assert (section.kind, section.max_size, section.size) == ("window", 8192, 8192)
    larger = flash(rest=b"\xff" * 4096)
    with pytest.raises(blobstore.SectionMismatchError, match="F20"):
        import_state(store, io.BytesIO(larger), "ovmf-vars", overwrite=True)
    assert store.get("uefi-variables") == flash()


@pytest.mark.parametrize("template", [bytes(8192), b"\xff" * 8192])
def test_f20_a_blank_flash_comes_in_and_goes_out(template: bytes) -> None:
    store = open_store(recorded())
    with pytest.raises(EmptyImageError):
        import_state(store, io.BytesIO(template), "ovmf-vars")
    import_state(store, io.BytesIO(template), "ovmf-vars", blank=True)
    assert store.section("uefi-variables").kind == "window"
    out = io.BytesIO()
    export_state(store, out, "ovmf-vars")
    assert out.getvalue() == template
    with pytest.raises(ValueError, match="never blank"):
        import_state(store, io.BytesIO(template), "raw", name="x", blank=True)


@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
def test_f24_f25_a_flash_in_a_qcow2_image_comes_in_and_goes_out(
    tmp_path: Path, filler: bytes
) -> None:
    content = flash(rest=filler * (1 << 20))
    path = tmp_path / "vars.qcow2"
    path.write_bytes(qcow2_with(content))
    assert (path.stat().st_size < len(content)) == (filler == b"\0")
    sources: tuple[Path | io.BytesIO, ...] = (path, io.BytesIO(path.read_bytes()))
    for source in sources:
        store = open_store(recorded(free=5 << 20))
        import_state(store, source, "ovmf-vars")
        assert contents(store) == {"uefi-variables": flash()}
        out = io.BytesIO()
        export_state(store, out, "ovmf-vars", image_format="qcow2")
        assert out.getvalue() == path.read_bytes()
        export_state(store, tmp_path / "raw", "ovmf-vars", overwrite=True)
        assert (tmp_path / "raw").read_bytes() == content


def test_f24_a_blank_flash_in_a_qcow2_image() -> None:
    store = open_store(recorded())
    import_state(store, io.BytesIO(qcow2_with(bytes(8192))), "ovmf-vars", blank=True)
    assert store.get("uefi-variables") == bytes(8192)
    out = io.BytesIO()
    export_state(store, out, "ovmf-vars", image_format="qcow2")
    with open_image(MemoryDevice(out.getvalue())) as disk:
        assert disk.read(0, disk.size) == bytes(8192)


@pytest.mark.parametrize(
    ("size", "options", "error", "match"),
    [
        ((256 << 20) + 4096, Qcow2Options(), FormatError, "at most 268435456"),
        (8192, Qcow2Options(luks_header_size=4096), UnsupportedError, "is encrypted"),
        (
            8192,
            Qcow2Options(backing_name="base", backing_format="raw"),
            UnsupportedError,
            "backing file",
        ),
    ],
)
def test_f24_what_is_not_read_from_a_qcow2_image(
    size: int, options: Qcow2Options, error: type[StorageError], match: str
) -> None:
    image = MemoryDevice(0)
    create(image, size, options)
    store = open_store(recorded())
    with pytest.raises(error, match=match) as raised:
        import_state(store, io.BytesIO(image.content), "ovmf-vars")
    assert type(raised.value) is error
    assert not store.sections()


def test_f20_a_section_keeps_the_kind_it_was_made_with() -> None:
    from formats.container.model import Kind

    window = blobstore.SectionSpec("a", 100, kind=Kind.WINDOW)
    store = open_store(recorded(spec("uefi-variables", 8192), window))
    import_state(store, io.BytesIO(flash()), "ovmf-vars")
    import_state(store, io.BytesIO(b"x"), "raw", name="a")
    assert [section.kind for section in store.sections()] == ["blob", "window"]
    assert contents(store) == {"uefi-variables": flash(), "a": b"x"}


def test_f22_the_worst_case_of_uefi_variables() -> None:
    store = open_store(recorded(free=5 << 20))
    import_state(store, io.BytesIO(uefi_json(BOOT)), "uefi-vars")
    assert store.section("uefi-vars-json").max_size == 1 << 20
    with pytest.raises(EmptyImageError):
        import_state(store, io.BytesIO(b""), "uefi-vars", overwrite=True)
    assert store.get("uefi-vars-json") == uefi_json(BOOT)


def test_f4_f13_swapped_sections_are_not_exported(tmp_path: Path) -> None:
    store = open_store(recorded(spec(NAMES[0], 999, PERMANENT), spec(NAMES[1], 999, PERMANENT)))
    for form in ("swtpm-dir", "swtpm-file"):
        with pytest.raises(FormatError, match=r"volatile state is not that of a TPM 2\.0"):
            export_state(store, tmp_path / "out", form)
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ("swtpm-dir", FormatError),
        ("swtpm-file", FormatError),
        ("ovmf-vars", ForeignImageError),
        ("uefi-vars", ForeignImageError),
    ],
)
def test_f4_what_is_of_another_format_is_not_exported(
    tmp_path: Path, form: str, error: type[StorageError]
) -> None:
    name = "tpm" if form.startswith("swtpm") else "other"
    store = open_store(
        recorded(spec(NAMES[0], 99, b"GIF89a" * 9), spec("other", 99, b"GIF89a" * 9))
    )
    with pytest.raises(error):
        export_state(store, tmp_path / "out", form, name=name)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("form", ["swtpm-file", "ovmf-vars", "uefi-vars", "raw"])
def test_a_source_that_is_being_written_is_busy(tmp_path: Path, form: str) -> None:
    """QEMU locks a flash in the same way while a machine runs."""
    source = tmp_path / "source"
    source.write_bytes(flash())
    store = open_store(recorded())
    with FileDevice(source, read_only=False), pytest.raises(DeviceBusyError):
        import_state(store, source, form, name="a")
    assert len(store) == 0


def test_an_unsupported_version_says_so() -> None:
    newer = b"\x03\x03" + PERMANENT[2:]
    with pytest.raises(UnsupportedError):
        import_state(open_store(recorded()), encode_file({Slot.PERMANENT: newer}), "swtpm-file")


def test_arguments_that_do_not_fit_together_are_the_callers_mistake(tmp_path: Path) -> None:
    store = open_store(recorded())
    stream = io.BytesIO(b"x")
    for arguments, options in (
        ((stream, "raw"), {}),
        ((stream, "raw"), {"name": "a", "key": KEY}),
        ((stream, "raw"), {"name": "a\n"}),
        ((stream, "vmgs"), {"name": "a"}),
        ((stream, "swtpm-dir"), {}),
        ((stream, "ovmf-vars"), {"max_size": 5}),
    ):
        with pytest.raises(ValueError):
            import_state(store, *arguments, **options)
    import_state(store, encode_file({Slot.PERMANENT: PERMANENT}), "swtpm-file")
    with pytest.raises(ValueError, match="something open"):
        export_state(store, stream, "swtpm-dir")
    with pytest.raises(ValueError, match="takes no key"):
        export_state(store, tmp_path / "out", "raw", name="a", key=KEY)
    with pytest.raises(ValueError, match="never in a qcow2 image"):
        export_state(store, stream, "swtpm-file", image_format="qcow2")
    with pytest.raises(ValueError, match="not a format of images"):
        export_state(store, stream, "ovmf-vars", image_format="vmdk")
