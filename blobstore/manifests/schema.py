"""The JSON Schema of manifests, for editors and for those who generate manifests."""

from __future__ import annotations

import json
from typing import Any, Final

from blobstore.manifests.codecs import USUAL
from blobstore.manifests.content import SIZES, SOURCES
from blobstore.manifests.loading import CLUSTER_SIZES, SECTOR_SIZES
from formats.container.model import BLOCK_SIZES, Kind
from formats.eeprom.framework.registry import built_in_names
from formats.eeprom.framework.schema import schemas_of
from formats.eeprom.parts.chips import CHIPS

_TITLE: Final = "Manifest of blobstore pack"
_SIZE: Final = {
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(([KMGTkmgt](iB|ib|IB|Ib)?)|[Bb])?\s*$"},
    ]
}
_TEXT: Final = {"type": "string"}


def manifest_schema(*, plug_ins: bool = True) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a manifest.

    Args:
        plug_ins: With the formats that other distributions add here.

    Raises:
        UnsupportedError: One of these cannot be used.
    """
    names = USUAL.names() if plug_ins else built_in_names()
    models = {name: USUAL.require(name).model for name in names}
    fields, definitions = schemas_of(models)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": _TITLE,
        "type": "object",
        "properties": {
            "image": _IMAGE,
            "section": {"type": "array", "items": _section(fields)},
        },
        "additionalProperties": False,
        "$defs": definitions,
    }


def schema_text(*, plug_ins: bool = True) -> str:
    """Return `manifest_schema` as text."""
    return json.dumps(manifest_schema(plug_ins=plug_ins), indent=2, ensure_ascii=False) + "\n"


_IMAGE: Final = {
    "type": "object",
    "properties": {
        "format": {"enum": ["raw", "qcow2"]},
        "luks": {"enum": [1, 2, False, "qcow2"]},
        "cluster-size": {"enum": list(CLUSTER_SIZES)},
        "size": {"anyOf": [{"const": "fit"}, _SIZE]},
        "header": {**_TEXT, "description": "file of the detached LUKS header"},
        "block-size": {"enum": list(BLOCK_SIZES)},
        "sector-size": {"enum": list(SECTOR_SIZES)},
        "seed": {**_TEXT, "description": "file from which everything random is derived"},
    },
    "additionalProperties": False,
}


def _section(fields: dict[str, Any]) -> dict[str, Any]:
    sources = {source: _TEXT for source in SOURCES if source != "fields"}
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "type": {**_TEXT, "description": "what it is, for tools"},
            "max-size": {**_SIZE, "description": "worst case; default: size of the content"},
            "kind": {"enum": [kind.name.lower() for kind in Kind]},
            "copies": {"enum": [1, 2]},
            "chip": {"enum": list(CHIPS)},
            "size": {**_SIZE, "description": "of the content, instead of a chip"},
            **sources,
            "fields": {"type": "object", "description": "as the format of the type has them"},
        },
        "required": ["name"],
        "additionalProperties": False,
        "not": {"required": list(SIZES)},
        "allOf": [
            # At most one content.
            *(
                {"if": {"required": [one]}, "then": {"not": {"required": [other]}}}
                for number, one in enumerate(SOURCES)
                for other in SOURCES[number + 1 :]
            ),
            {
                "if": {"required": ["fields"]},
                "then": {"required": ["type"], "properties": {"type": {"enum": list(fields)}}},
            },
            *(
                {
                    "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
                    "then": {"properties": {"fields": schema}},
                }
                for name, schema in fields.items()
            ),
        ],
    }
