"""Reading manifests, in TOML or JSON.

    [image]
    format = "raw"          # or "qcow2"
    luks = 2                # 1, 2, false for no encryption, or "qcow2" for that format's own
    cluster-size = 65536    # of qcow2
    size = "fit"            # or the size of the whole image, such as "16MiB"
    header = "keys.hdr"     # a detached LUKS header
    block-size = 4096       # of the container
    sector-size = 4096      # of LUKS2
    seed = "seed.bin"       # derive everything random from this file

    [[section]]
    name = "tpm-permanent-state"
    file = "tpm2.bin"       # or text, hex, base64, fields; none: registered, unwritten
    max-size = "256KiB"     # worst case; default: the size of the content
    kind = "blob"           # or "window"
    copies = 2              # 1 for content that is only read
    type = "tpm2-permall"   # what it is, for tools

    [[section]]
    name = "board"
    type = "ipmi-fru"       # a format of spec/eeprom.md
    chip = "24c02"          # or size, in bytes: the content is exactly that long
    [section.fields.board]  # as the format has them
    serial-number = "0001"

    [[layout]]
    file = "acme.toml"      # a type that the file declares; or the layout itself

Relative file names start at the manifest's directory, but the header's, which
like the image's starts where the command runs. Unknown keys are errors.
"""

from __future__ import annotations

import copy
import json
import tomllib
from typing import TYPE_CHECKING, Any, Final, TypeVar

from blobstore.container.initialise import SectionSpec
from blobstore.errors import ManifestError
from blobstore.image.layers import QCOW2, RAW
from blobstore.image.place import place_of
from blobstore.manifests.codecs import USUAL, Codecs
from blobstore.manifests.content import SIZES, SOURCES, ContentReader
from blobstore.manifests.layouts import layouts_of_tables
from blobstore.manifests.manifest import Manifest
from blobstore.manifests.settings import apply_settings, has_field
from blobstore.manifests.sizes import parse_size
from blobstore.store.description import parse_kind
from formats.container.model import BLOCK_SIZES, DEFAULT_BLOCK_SIZE
from formats.errors import FieldError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from formats.eeprom.framework.codec import Codec

_IMAGE_KEYS: Final = {
    "format",
    "luks",
    "size",
    "header",
    "block-size",
    "sector-size",
    "cluster-size",
    "seed",
}
_SECTION_KEYS: Final = {"name", *SOURCES, *SIZES, "max-size", "kind", "copies", "type"}

#: No format's fields are nested nearly so deeply, and what goes through them recurses.
_MOST_LEVELS: Final = 50

#: What clusters of qcow2 can have, in bytes.
CLUSTER_SIZES: Final = tuple(1 << bits for bits in range(9, 22))
#: What sectors of LUKS2 can have, in bytes; LUKS1 has the first.
SECTOR_SIZES: Final = tuple(1 << bits for bits in range(9, 13))

_T = TypeVar("_T")


def load_manifest(path: Path, settings: Iterable[tuple[str, str]] = ()) -> Manifest:
    """Read a manifest and the files it names.

    Args:
        path: JSON if it ends with ``.json``, else TOML.
        settings: Fields that are to be other than the manifest says
            (`blobstore.manifests.settings`).

    Raises:
        ManifestError: It cannot be read or used; the message has the key.
        UnsupportedError: A codec that another distribution adds cannot be used.
    """
    return ManifestFile(path, settings).manifest()


class ManifestFile:
    """A manifest that was read, of which manifests with other settings can be made.

    Attributes:
        path: Of the file.
    """

    def __init__(
        self,
        path: Path,
        settings: Iterable[tuple[str, str]] = (),
        *,
        encrypted: bool | None = None,
        seed: Path | None = None,
        layouts: Iterable[Codec[Any]] = (),
    ) -> None:
        """Read a manifest.

        Args:
            path: JSON if it ends with ``.json``, else TOML.
            settings: As `load_manifest` takes them, for all manifests made of it.
            encrypted: False for images in the clear, whatever it says of LUKS.
            seed: A file instead of that with its seed; relative to where the command runs.
            layouts: Further types of sections, which `load_layout` returned.

        Raises:
            ManifestError: It cannot be read, or a setting is wrong.
        """
        self.path = path
        self._contents = ContentReader(path.parent)
        self._tables = _read_tables(path)
        self._check_tables()
        self._contents.codecs = self._codecs(layouts)
        if encrypted is False:
            self._tables.setdefault("image", {})["luks"] = False
            self._tables["image"].pop("header", None)
        if seed is not None:
            self._tables.setdefault("image", {})["seed"] = str(seed.absolute())
        self._tables = self._with(settings)

    @property
    def is_encrypted(self) -> bool:
        """Whether its images are."""
        return self._tables.get("image", {}).get("luks", 2) is not False

    def manifest(self, settings: Iterable[tuple[str, str]] = ()) -> Manifest:
        """Return the manifest with some fields set; see `load_manifest`."""
        tables = self._with(settings)
        image = tables.get("image", {})
        specs = tuple(
            self._section(table, number)
            for number, table in enumerate(tables.get("section", []), 1)
        )
        names = [spec.name for spec in specs]
        for name in names:
            if names.count(name) > 1:
                raise self._error("section.name", f"{name!r} occurs twice")
        header = self._get(image, "image", "header", str, None)
        return Manifest(
            sections=specs,
            luks_version=self._luks_version(image),
            own_luks=image.get("luks") == QCOW2,
            image_format=image.get("format", RAW),
            cluster_size=self._get(image, "image", "cluster-size", int, None),
            size=None
            if image.get("size", "fit") == "fit"
            else self._convert("image.size", parse_size, image["size"]),
            header=self._convert("image.header", place_of, header) if header else None,
            block_size=self._get(image, "image", "block-size", int, DEFAULT_BLOCK_SIZE),
            sector_size=self._get(image, "image", "sector-size", int, None),
            seed=self._seed(image),
        )

    def _with(self, settings: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Return the manifest's tables with some fields set."""
        settings = list(settings)
        if not settings:
            return self._tables
        tables = copy.deepcopy(self._tables)
        try:
            apply_settings(tables.get("section", []), settings, self._contents.codecs)
        except ValueError as error:
            raise ManifestError(f"{self.path}: {error}") from error
        return tables

    def has_field(self, name: str) -> bool:
        """Say whether a setting can have this name."""
        return has_field(self._tables.get("section", []), name, self._contents.codecs)

    def _codecs(self, layouts: Iterable[Codec[Any]]) -> Codecs:
        """Return the codecs, those of the layouts in the manifest included."""
        tables = self._tables.get("layout", [])
        if not isinstance(tables, list):
            raise self._error("layout", "must be an array of tables: [[layout]]")
        if not tables and not layouts:
            return USUAL
        try:
            return Codecs([*layouts, *layouts_of_tables(tables, self.path.parent)])
        except FieldError as error:
            raise self._error(error.path, error.problem) from error

    def _check_tables(self) -> None:
        tables = self._tables
        self._only(tables, {"image", "layout", "section"}, "manifest")
        image = tables.get("image", {})
        sections = tables.get("section", [])
        if not isinstance(image, dict):
            raise self._error("image", "must be a table: [image]")
        if not isinstance(sections, list) or not all(isinstance(s, dict) for s in sections):
            raise self._error("section", "must be an array of tables: [[section]]")
        self._only(image, _IMAGE_KEYS, "image")
        self._check_format(image)
        version = self._luks_version(image)
        if "header" in image and image.get("luks") is False:
            raise self._error("image.header", "is for images with LUKS, and luks is false")
        if image.get("block-size", DEFAULT_BLOCK_SIZE) not in BLOCK_SIZES:
            raise self._error("image.block-size", "is a power of two from 512 to 65536")
        sector_sizes = SECTOR_SIZES[:1] if version == 1 else SECTOR_SIZES
        if image.get("sector-size", SECTOR_SIZES[0]) not in sector_sizes:
            wanted = "a power of two from 512 to 4096" if version != 1 else "512 in LUKS1"
            raise self._error("image.sector-size", f"is {wanted}")

    def _check_format(self, image: dict[str, Any]) -> None:
        is_qcow2 = image.get("format", RAW) == QCOW2
        own_luks = image.get("luks") == QCOW2
        if image.get("format", RAW) not in (RAW, QCOW2):
            raise self._error("image.format", f"is raw or qcow2, not {image['format']!r}")
        if own_luks and not is_qcow2:
            raise self._error("image.luks", "is qcow2 in images of that format only")
        if own_luks and ("header" in image or "sector-size" in image):
            raise self._error("image.luks", "of qcow2 has no header elsewhere, and no sector size")
        if "cluster-size" in image and not is_qcow2:
            raise self._error("image.cluster-size", "is for images of format qcow2")
        if image.get("cluster-size", CLUSTER_SIZES[0]) not in CLUSTER_SIZES:
            raise self._error("image.cluster-size", "is a power of two from 512 to 2097152")

    def _luks_version(self, image: dict[str, Any]) -> int | None:
        value = image.get("luks", 2)
        if value is False or value == QCOW2:
            return None
        if value is True or value not in (1, 2):
            raise self._error("image.luks", f"is 1, 2, qcow2 or false, not {value!r}")
        return 1 if value == 1 else 2

    def _seed(self, image: dict[str, Any]) -> bytes | None:
        name = self._get(image, "image", "seed", str, None)
        if name is None:
            return None
        seed = self._convert("image.seed", lambda file: bytes(self._contents.file(file)), name)
        if not seed:
            raise self._error("image.seed", f"{name} is empty")
        return seed

    def _section(self, table: dict[str, Any], number: int) -> SectionSpec:
        name = self._get(table, f"section {number}", "name", str, None)
        if name is None:
            raise self._error(f"section {number}: name", "is missing")
        where = f"section {name!r}"
        self._only(table, _SECTION_KEYS, where)
        type_ = self._get(table, where, "type", str, "")
        content = self._convert(where, self._contents.read, table)
        if "max-size" in table:
            max_size = self._convert(f"{where}: max-size", parse_size, table["max-size"])
        elif content is not None:
            max_size = len(content)
        else:
            raise self._error(where, "has neither content nor max-size")
        kind = self._convert(
            f"{where}: kind", parse_kind, self._get(table, where, "kind", str, "blob")
        )
        copies = self._get(table, where, "copies", int, 2)
        try:
            return SectionSpec(name, max_size, kind, copies, type_, content)
        except ValueError as error:
            raise self._error(where, str(error).removeprefix(f"{where}: ")) from error

    def _only(self, table: dict[str, Any], known: set[str], where: str) -> None:
        unknown = sorted(set(table) - known)
        if unknown:
            raise self._error(where, f"has unknown keys: {', '.join(unknown)}")

    def _get(self, table: dict[str, Any], where: str, key: str, kind: type, default: Any) -> Any:
        value = table.get(key, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
            words = {str: "text", int: "a whole number"}
            raise self._error(f"{where}: {key}", f"must be {words[kind]}, not {value!r}")
        return value

    def _convert(self, key: str, convert: Callable[[Any], _T], value: object) -> _T:
        try:
            return convert(value)
        except ValueError as error:
            raise self._error(key, str(error)) from error

    def _error(self, key: str, problem: str) -> ManifestError:
        return ManifestError(f"{self.path}: {key}: {problem}")


def _read_tables(path: Path) -> dict[str, Any]:
    is_json = path.suffix.lower() == ".json"
    try:
        text = path.read_text(encoding="utf-8")
        tables = json.loads(text) if is_json else tomllib.loads(text)
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # also of a number with thousands of digits
        raise ManifestError(f"{path} is no {'JSON' if is_json else 'TOML'}: {error}") from error
    except RecursionError as error:
        raise ManifestError(f"{path} is nested too deeply") from error
    if not isinstance(tables, dict):
        raise ManifestError(f"{path}: is not an object with image and section")
    level = [tables]
    for _ in range(_MOST_LEVELS):
        level = [inner for outer in level for inner in _contained(outer)]
    if level:
        raise ManifestError(f"{path} is nested too deeply")
    return tables


def _contained(value: Any) -> Iterable[Any]:
    """Return the tables and lists directly in a table or list."""
    values = value.values() if isinstance(value, dict) else value
    return (inner for inner in values if isinstance(inner, dict | list))
