"""Options of all who make volumes: refused at the boundary, before anything is touched."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
import luks
from blobstore.errors import ImageExistsError
from blobstore.image.creation import NewImage, new_image
from blobstore.image.layers import QCOW2, RAW
from blobstore.opening import CreateKeywords, create_store
from formats.devices.device import MemoryDevice
from formats.devices.file import FileDevice
from luks.payload.options import FormatKeywords, FormatOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = b"a passphrase"
KDF = luks.Pbkdf2("sha256", 1000)
SIZE = 1 << 20


@pytest.fixture
def prepared(tmp_path: Path) -> Any:
    """Return what the entries need: an open store, a manifest, and a disk."""
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    (tmp_path / "manifest.toml").write_text('[[section]]\nname = "a"\nmax-size = 100\n')
    store = blobstore.create(tmp_path / "store", {"a": 100}, SECRET, kdf=KDF)
    yield store, blobstore.load_manifest(tmp_path / "manifest.toml")
    store.close()


@pytest.fixture
def unopened(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what is prepared, and have each file fail that is opened from now on."""

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was opened before the options were checked")

    monkeypatch.setattr(FileDevice, "__init__", opened)
    return prepared


ENTRIES: dict[str, Callable[[Path, Any, dict[str, Any]], object]] = {
    "luks.format": lambda path, _, options: luks.format(path / "new", SECRET, size=SIZE, **options),
    "luks.format of a device": lambda _, __, options: luks.format(
        MemoryDevice(SIZE), SECRET, **options
    ),
    "luks.add_keyslot": lambda path, _, options: luks.add_keyslot(
        path / "store", SECRET, b"another", **options
    ),
    "luks.FormatOptions": lambda _, __, options: luks.FormatOptions(**options),
    "create": lambda path, _, options: blobstore.create(
        path / "new", {"a": 100}, SECRET, **options
    ),
    "create qcow2": lambda path, _, options: blobstore.create(
        path / "new", {"a": 100}, SECRET, image_format=QCOW2, own_luks=True, **options
    ),
    "create in the clear": lambda path, _, options: blobstore.create(
        path / "new", {"a": 100}, encrypted=False, **options
    ),
    "clone": lambda path, prepared, options: blobstore.clone(
        prepared[0], path / "new", SECRET, **options
    ),
    "pack": lambda path, prepared, options: blobstore.pack(
        prepared[1], path / "new", SECRET, **options
    ),
    "pack_table": lambda _, prepared, options: blobstore.pack_table(prepared[1], SECRET, **options),
    **{
        f"convert to {to}": lambda path, _, options, to=to: blobstore.convert(  # type: ignore[misc]
            path / "disk", path / "new", None, SECRET, to=to, **options
        )
        for to in (None, "luks1", "luks2", "qcow2-luks", "luks2-in-qcow2", "raw")
    },
    "convert in place": lambda path, _, options: blobstore.convert(
        path / "disk", path / "store", None, SECRET, create=False, **options
    ),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("option", ["ciper", "siize", "pim"])
def test_all_who_make_volumes_refuse_an_unknown_option_by_name(
    entry: str, option: str, tmp_path: Path, unopened: Any
) -> None:
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TypeError, match=option):
        ENTRIES[entry](tmp_path, unopened, {option: "aes"})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_refusal_names_what_may_be_meant(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"luks\.format\(\) does not take 'ciper'.*'cipher'"):
        luks.format(tmp_path / "new", SECRET, size=SIZE, ciper="aes")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"blobstore\.convert\(\) does not take 'size'"):
        blobstore.convert(tmp_path / "a", tmp_path / "b", size=1)  # type: ignore[call-arg]


IMPOSSIBLE: tuple[dict[str, Any], ...] = (
    {"key_size": 63},
    {"kdf": "argon9"},
    {"kdf": luks.Pbkdf2("sha256", 1)},
    {"iter_time": 0},
)


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if not e.endswith(("keyslot", "table", "clear", "None"))]
)
@pytest.mark.parametrize("options", IMPOSSIBLE, ids=str)
def test_all_who_make_volumes_refuse_impossible_values_first(
    entry: str, options: dict[str, Any], tmp_path: Path, unopened: Any
) -> None:
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises((ValueError, luks.UnsupportedError)):
        ENTRIES[entry](tmp_path, unopened, options)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("to", "options"),
    [
        ("luks2", {"version": 1}),
        ("luks1", {"label": "only LUKS2 has one"}),
        ("luks1", {"sector_size": 4096}),
        ("luks2", {"stripes": 1}),
        ("raw", {"cipher": "aes-xts-plain64"}),
        ("qcow2", {"kdf": KDF}),
        ("qcow2-luks", {"label": "only LUKS2 has one"}),
    ],
)
def test_convert_refuses_options_that_do_not_fit_the_kind(
    to: str, options: dict[str, Any], tmp_path: Path, unopened: Any
) -> None:
    del unopened
    with pytest.raises(ValueError):
        blobstore.convert(tmp_path / "disk", tmp_path / "new", None, SECRET, to=to, **options)
    assert not (tmp_path / "new").exists()


def test_the_place_of_a_payload_in_qcow2_is_not_an_option(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    with pytest.raises(ValueError, match="data_offset"):
        blobstore.convert(
            tmp_path / "disk",
            tmp_path / "new",
            None,
            SECRET,
            to="qcow2-luks",
            kdf=KDF,
            data_offset=4 << 20,
        )
    assert not (tmp_path / "new").exists()


def test_each_keyword_is_a_field_and_each_field_a_keyword() -> None:
    assert set(FormatKeywords.__annotations__) == set(FormatOptions._fields)
    others = set(inspect.signature(create_store).parameters) - set(CreateKeywords.__annotations__)
    assert others == {"path", "sections", "secret", "fill"}
    assert set(CreateKeywords.__annotations__) <= set(inspect.signature(create_store).parameters)


def test_options_are_frozen_and_do_not_show_a_key() -> None:
    options = luks.FormatOptions(volume_key=b"k" * 32 + b"l" * 32, kdf=KDF)
    with pytest.raises(AttributeError):
        options.cipher = "null"  # type: ignore[misc]
    assert "kkk" not in repr(options)
    assert SECRET.decode() not in repr(NewImage(path="x", secret=SECRET, luks=options))


def test_luks_format_takes_options_as_one_value_and_keywords_before_it() -> None:
    options = luks.FormatOptions(version=1, kdf=KDF, hash_name="sha256", key_size=32)
    device = MemoryDevice(0)
    luks.format(device, SECRET, options, size=SIZE, key_size=64).close()
    header = luks.load_header(device)
    assert (header.version, header.keyslots[0].key_size) == (1, 64)


class _Order:
    """Records when files take their names and when layers are closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.events: list[str] = []
        self._folder = folder
        for kind, name in ((FileDevice, "file"), (luks.Volume, "volume")):
            self._watch(monkeypatch, kind, name)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
        close = kind.close  # type: ignore[attr-defined]

        def watched(device: Any) -> None:
            was_open = not getattr(device, "_closed", False) and getattr(device, "_fd", 0) >= 0
            named = {p.name for p in self._folder.iterdir() if not p.name.startswith(".")}
            close(device)
            if was_open:
                what = device.path.name if isinstance(device, FileDevice) else name
                self.events.append(f"{what.split('.')[-1]} with {sorted(named)}")

        monkeypatch.setattr(kind, "close", watched)


def _plan(folder: Path, **more: Any) -> NewImage:
    return NewImage(
        path=folder / "image",
        secret=SECRET,
        luks=luks.FormatOptions(kdf=KDF),
        header=folder / "header",
        **more,
    )


def test_names_come_before_closing_and_the_volume_is_closed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = _Order(monkeypatch, tmp_path)
    with new_image(_plan(tmp_path), SIZE) as image:
        image.layers.payload.write(0, b"payload")
        order.events.clear()
        assert not (tmp_path / "image").exists()
    both = "['header', 'image']"
    assert order.events == [f"volume with {both}", f"header with {both}", f"image with {both}"]
    with luks.open(tmp_path / "image", SECRET, header=tmp_path / "header") as volume:
        assert volume.read(0, 7) == b"payload"


def test_the_header_takes_its_name_before_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So whoever finds the image finds its header."""
    named: list[str] = []
    rename = FileDevice.rename

    def watched(device: FileDevice, path: Any) -> None:
        rename(device, path)
        named.append(device.path.name)

    monkeypatch.setattr(FileDevice, "rename", watched)
    with new_image(_plan(tmp_path), SIZE):
        pass
    assert named == ["header", "image"]


def test_what_is_handed_over_stays_open_only_if_all_went_well(tmp_path: Path) -> None:
    with new_image(_plan(tmp_path), SIZE) as image:
        resources = image.hand_over()
    image.layers.payload.write(0, b"still open")
    resources.close()
    with pytest.raises(ValueError, match="closed"):
        image.layers.payload.write(0, b"closed")

    with pytest.raises(KeyError), new_image(_plan(tmp_path, overwrite=True), SIZE) as image:
        image.hand_over()
        raise KeyError
    with pytest.raises(ValueError, match="closed"):
        image.layers.payload.write(0, b"closed")
    assert {path.name for path in tmp_path.iterdir()} == {"header", "image"}
    with luks.open(tmp_path / "image", SECRET, header=tmp_path / "header") as volume:
        assert volume.read(0, 10) == b"still open"


def test_a_name_that_appears_meanwhile_closes_what_was_handed_over(tmp_path: Path) -> None:
    with pytest.raises(ImageExistsError), new_image(_plan(tmp_path), SIZE) as image:
        image.hand_over()
        (tmp_path / "image").write_bytes(b"another")
    with pytest.raises(ValueError, match="closed"):
        image.layers.payload.write(0, b"closed")
    assert (tmp_path / "image").read_bytes() == b"another"


def test_a_replaced_file_is_locked_until_another_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    with new_image(NewImage(path=path), SIZE), pytest.raises(luks.DeviceBusyError):
        FileDevice(path, read_only=False)
    FileDevice(path, read_only=False).close()


def test_an_unknown_format_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"'vmdk' is not a format of images: {RAW}"):
        blobstore.create(tmp_path / "new", {}, encrypted=False, image_format="vmdk")
    assert not list(tmp_path.iterdir())
