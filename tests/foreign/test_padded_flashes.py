"""Flashes of which a section holds the part with variables (F60, F61)."""

from __future__ import annotations

import io
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.foreign.exporting import export_state
from blobstore.foreign.importing import import_state
from blobstore.owner import StoreClient
from formats.container.model import Kind
from formats.state.edk2_varstore import decode_flash
from formats.state.padded_flash import Padding, padding_of
from tests.foreign.samples import flash, recorded
from tests.support.foreign import program, system_file
from tests.support.owners import owner_thread
from tests.support.stores import open_store, spec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from blobstore.store.store import Store

NAME = "uefi-variables"
SIZE = 1 << 20
FILLERS = pytest.mark.parametrize("filler", [b"\0", b"\xff"])


def exported(store: Store) -> bytes:
    out = io.BytesIO()
    export_state(store, out, "ovmf-vars")
    return out.getvalue()


def large(filler: bytes = b"\0") -> bytes:
    return flash(rest=filler * (SIZE - 8192))


def with_flash(content: bytes, *, blank: bool = False, free: int = 4 << 20) -> Store:
    store = open_store(recorded(free=free))
    import_state(store, io.BytesIO(content), "ovmf-vars", blank=blank)
    return store


@pytest.mark.parametrize(
    ("type_", "max_size", "padding"),
    [
        ("ovmf-vars:8192", 4096, Padding(8192, b"\0")),
        ("ovmf-vars:8192:ff", 4096, Padding(8192, b"\xff")),
        ("ovmf-vars:8192", 8192, Padding(8192, b"\0")),
        ("ovmf-vars:8192", 8193, None),
        ("ovmf-vars:8191", 4096, None),
        ("ovmf-vars:08192", 4096, None),
        ("ovmf-vars:8192:00", 4096, None),
        ("ovmf-vars:268435456", 4096, Padding(256 << 20, b"\0")),
        ("ovmf-vars:268439552", 4096, None),
        ("ovmf-vars:\u0668\u0661\u0669\u0662", 4096, None),
        ("ovmf-vars:0", 0, None),
        ("ovmf-vars", 4096, None),
        ("raw:8192", 4096, None),
    ],
)
def test_f60_the_type_says_how_a_flash_continues(
    type_: str, max_size: int, padding: Padding | None
) -> None:
    assert padding_of(type_, max_size) == padding
    if padding is not None:
        assert padding.type() == type_


@FILLERS
def test_f60_only_the_volume_is_stored(filler: bytes) -> None:
    store = with_flash(large(filler))
    section = store.section(NAME)
    assert (section.kind, section.max_size, section.size) == ("window", 8192, 8192)
    assert section.type == f"ovmf-vars:{SIZE}" + (":ff" if filler == b"\xff" else "")
    assert store.get(NAME) == flash()
    assert exported(store) == large(filler)
    with store.window(NAME) as window:
        assert window.size == SIZE
        assert window.read(0, SIZE) == large(filler)
        assert window.read(8190, 4) == large(filler)[8190:8194]
        assert window.read(SIZE - 1, 1) == filler


@FILLERS
@pytest.mark.parametrize("in_place", [False, True])
def test_f60_after_the_volume_only_what_is_there_is_taken(*, filler: bytes, in_place: bool) -> None:
    store = with_flash(large(filler))
    other = bytes([filler[0] ^ 1])
    with store.window(NAME, in_place=in_place) as window:
        window.write(8000, b"x" * 192 + filler * 1000)
        window.write(SIZE - 512, filler * 512)
        for offset, data in ((8192, other), (8000, b"y" * 192 + other), (SIZE - 1, other)):
            with pytest.raises(blobstore.NoSpaceError, match="F60"):
                window.write(offset, data)
        with pytest.raises(ValueError, match="outside a device"):
            window.write(SIZE - 1, filler * 2)
        if filler == b"\0":
            window.discard(8100, 10_000)
        else:
            with pytest.raises(blobstore.NoSpaceError, match="F60"):
                window.discard(8100, 10_000)
        window.flush()
    written = bytearray(large(filler))
    written[8000:8192] = b"x" * 192
    if filler == b"\0":
        written[8100:8192] = bytes(92)
    assert exported(store) == written
    assert store.verify().ok


@FILLERS
def test_f60_a_section_that_was_made_larger_shows_the_same_flash(filler: bytes) -> None:
    store = with_flash(large(filler))
    for size in (12_288, SIZE):
        store.resize(NAME, size)
        assert exported(store) == large(filler)
        with store.window(NAME) as window:
            assert window.read(0, window.size) == large(filler)
            window.write(size - 3, b"new")
            window.write(size - 3, filler * 3)
        assert exported(store) == large(filler)


def test_f60_a_section_that_is_there_keeps_its_way() -> None:
    store = open_store(recorded(spec(NAME, SIZE, kind=Kind.WINDOW), free=4 << 20))
    import_state(store, io.BytesIO(large()), "ovmf-vars")
    assert (store.section(NAME).size, exported(store)) == (SIZE, large())
    small = with_flash(large())
    again = flash(store_size=2048, rest=bytes(SIZE - 8192))
    import_state(small, io.BytesIO(again), "ovmf-vars", overwrite=True)
    assert exported(small) == again
    for other in (large(b"\xff"), large() + bytes(4096), flash()):
        with pytest.raises(blobstore.SectionMismatchError, match=r"F20|F60"):
            import_state(small, io.BytesIO(other), "ovmf-vars", overwrite=True)
    with pytest.raises(blobstore.SectionExistsError):
        import_state(small, io.BytesIO(large(b"\xff")), "ovmf-vars")
    assert exported(small) == again


@FILLERS
def test_f61_of_a_blank_flash_one_mib_is_stored(filler: bytes) -> None:
    template = filler * (4 << 20)
    store = with_flash(template, blank=True)
    section = store.section(NAME)
    assert (section.max_size, section.size) == (1 << 20, 0 if filler == b"\0" else 1 << 20)
    assert exported(store) == template
    with store.window(NAME) as window:  # as firmware does
        window.write(0, flash())
    assert exported(store) == flash() + filler * ((4 << 20) - 8192)
    larger = flash() + filler * ((4 << 20) - 8192)
    import_state(store, io.BytesIO(larger), "ovmf-vars", overwrite=True)
    assert (exported(store), store.section(NAME).max_size) == (larger, 1 << 20)


def test_f61_a_small_blank_flash_is_stored_whole() -> None:
    store = with_flash(bytes(8192), blank=True)
    assert (store.section(NAME).type, store.section(NAME).size) == ("ovmf-vars", 8192)


def test_f60_variables_are_read_and_changed(tmp_path: Path) -> None:
    template = system_file("/usr/share/AAVMF/AAVMF_VARS.ms.fd").read_bytes()
    with blobstore.create(tmp_path / "image", {}, encrypted=False) as store:
        import_state(store, io.BytesIO(template), "ovmf-vars")
        assert blobstore.holds_variables(store, NAME)
        before = blobstore.read_variables(store, NAME)
        assert any(one.name == "db" for one in before.variables)
        after = blobstore.edit_variables(store, NAME, lambda found: found)
        assert after.variables == before.variables
        assert exported(store) == template


def test_f60_clients_of_an_owner_see_the_whole_flash(tmp_path: Path) -> None:
    with blobstore.create(tmp_path / "image", {}, encrypted=False) as store:
        import_state(store, io.BytesIO(large()), "ovmf-vars")
        socket = tmp_path / "socket"
        with owner_thread(store, tmp_path / "image", socket), StoreClient(socket) as client:
            with client.window(NAME) as window:
                assert window.size == SIZE
                assert window.read(8000, 10_000) == large()[8000:18_000]
                window.write(4096, b"owner")
                with pytest.raises(blobstore.NoSpaceError):
                    window.write(SIZE - 5, b"owner")
            assert client.section(NAME).window_size == SIZE
            out = io.BytesIO()
            export_state(client, out, "ovmf-vars")
        assert out.getvalue()[4096:4101] == b"owner"
        assert out.getvalue() == exported(store)


def run(arguments: Sequence[str | Path]) -> str:
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


@pytest.mark.interop
def test_f60_qemu_sees_the_whole_flash(tmp_path: Path) -> None:
    """As for its machine virt, whose flash must have exactly 64 MiB."""
    template = system_file("/usr/share/AAVMF/AAVMF_VARS.ms.fd").read_bytes()
    assert decode_flash(template).volume_size == 768 << 10
    place = tmp_path / "image"
    export = f"nbd+unix:///{NAME}?socket={tmp_path / 's'}"
    with blobstore.create(place, {}, encrypted=False) as store:
        import_state(store, io.BytesIO(template), "ovmf-vars")
        with blobstore.NbdServer(tmp_path / "s", blobstore.NbdSections(store)):
            said = run([program("qemu-img"), "info", "--output=json", export])
            assert json.loads(said)["virtual-size"] == 64 << 20
            run([program("qemu-io"), "-f", "raw", "-c", "write -P 9 4096 512", export])
            run([program("qemu-img"), "convert", "-O", "raw", export, tmp_path / "copy"])
        expected = template[:4096] + b"\x09" * 512 + template[4608:]
        assert (tmp_path / "copy").read_bytes() == expected
        assert exported(store) == expected
    # Two copies of the volume, and what a new image has of free space.
    assert place.stat().st_size < (2 * 768 << 10) + (9 << 20)
