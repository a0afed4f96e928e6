"""Rendering manifests: TOML that packs what a store holds again."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from blobstore.manifests.fields import size_to_encode
from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.fields import from_plain, to_plain
from formats.eeprom.parts.chips import chip_of_size
from formats.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from blobstore.manifests.codecs import Codecs
    from blobstore.store.description import SectionInfo
    from blobstore.store.protocol import AnyStore
    from formats.eeprom.layouts.codec import DeclaredCodec

#: Fields of this type say nothing that a file does not.
_RAW: Final = "raw"
#: No EEPROM is larger; what is, is better in a file. Bytes.
_MOST: Final = 1 << 20


def fields_of_blob(type_: str, blob: bytes, codecs: Codecs) -> dict[str, Any] | None:
    """Return the keys of a section that make a blob out of fields, or None.

    They are checked by going all the way, from TOML to bytes: where the bytes are
    not those of the blob, there are no fields.
    """
    if type_ == _RAW or len(blob) > _MOST:
        return None
    try:
        codec = codecs.find(type_)
        if codec is None:
            return None
        model = codec.decode(blob, Findings.strict())
        size = size_to_encode(codec, model, blob)
        table: dict[str, Any] = {"fields": to_plain(model)}
        read = tomllib.loads(tomli_w.dumps(table))
        if codec.encode(from_plain(read["fields"], codec.model), size) != blob:
            return None
    except (FormatError, UnsupportedError, UnicodeError, tomllib.TOMLDecodeError):
        return None
    if size is None:
        return table
    chip = chip_of_size(size)
    return ({"size": size} if chip is None else {"chip": chip}) | table


def manifest_text(
    store: AnyStore,
    contents: Mapping[str, Mapping[str, Any]],
    *,
    layouts: Sequence[DeclaredCodec] = (),
    unread: Collection[str] = (),
) -> str:
    """Return a manifest in TOML.

    Where something of the store is missing, it cannot be packed as it is: what damage
    hides would be absent in the new image, for certain (C82).

    Args:
        store: What it describes.
        contents: Section name to the keys that give its content. Sections that are
            missing here are registered only.
        layouts: What declares the types of sections with fields.
        unread: Sections whose content names a file that is not there, as it could not
            be read.
    """
    return "\n".join([*_pieces(store, contents, unread), *map(_layout, layouts)])


def _layout(layout: DeclaredCodec) -> str:
    # The library writes a table in an array on one line, which is hard to read.
    declaration = layout.declaration
    fields = declaration.pop("field")
    return "[[layout]]\n" + tomli_w.dumps(declaration) + "".join(map(_layout_field, fields))


def _layout_field(field: dict[str, Any]) -> str:
    tables = {key: value for key, value in field.items() if isinstance(value, dict)}
    values = {key: value for key, value in field.items() if key not in tables}
    text = "\n[[layout.field]]\n" + tomli_w.dumps(values)
    return text + (tomli_w.dumps({"layout": {"field": tables}}) if tables else "")


def _pieces(
    store: AnyStore, contents: Mapping[str, Mapping[str, Any]], unread: Collection[str]
) -> Iterator[str]:
    yield tomli_w.dumps({"image": _image(store)})
    for section in store.sections(allow_damaged=True):
        if not section.name:
            yield (
                f"# At byte {section.offset} of the container, a section {section.damage}:\n"
                "# name it and give its content, or remove this table to pack without it.\n"
                '[[section]]\nname = ""\n'
            )
            continue
        if section.name in unread:
            yield (
                f"# The blob of {section.name!r} could not be read: put it into this file, or\n"
                "# remove the key to pack a section that was never written."
            )
        table = _section(section, contents.get(section.name, {}))
        fields = table.pop("fields", None)
        # The library would write some arrays of tables in one line.
        yield "[[section]]\n" + tomli_w.dumps(table)
        if fields is not None:
            yield tomli_w.dumps({"section": {"fields": fields}})


def _image(store: AnyStore) -> dict[str, Any]:
    info, image = store.info(), store.image_info()
    header = image.luks if image else None
    table: dict[str, Any] = {
        "format": image.format if image else "raw",
        "luks": header.version if header else False,
    }
    if image and header and header.place == "beside":
        table["luks"] = image.format
    if image and image.cluster_size:
        table["cluster-size"] = image.cluster_size
    if header and header.version > 1:
        table["sector-size"] = header.sector_size
    if image and image.header_path:
        table["header"] = str(image.header_path)
    table["size"] = image.size if info.free and image else "fit"
    table["block-size"] = info.block_size
    return table


def _section(section: SectionInfo, content: Mapping[str, Any]) -> dict[str, Any]:
    table = {
        "name": section.name,
        "max-size": section.max_size,
        "kind": section.kind,
        "copies": section.copies,
    }
    if section.type:
        table["type"] = section.type
    return table | dict(content)
