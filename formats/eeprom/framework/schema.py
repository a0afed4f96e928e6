"""JSON Schema of models, so that editors can help with what manifests hold."""

from __future__ import annotations

from typing import Any

import msgspec

from formats.eeprom.framework.mirror import Octets, mirror_of


def schemas_of(models: dict[str, type]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON Schemas (draft 2020-12) of plain data for models.

    Args:
        models: By a name.

    Returns:
        A schema for each name, and the definitions to which they refer, which
        belong under ``$defs``.
    """
    mirrors = [mirror_of(model) for model in models.values()]
    schemas, definitions = msgspec.json.schema_components(
        mirrors, schema_hook=_schema_hook, ref_template="#/$defs/{name}"
    )
    return dict(zip(models, schemas, strict=True)), definitions


def _schema_hook(kind: type) -> dict[str, Any]:
    assert issubclass(kind, Octets)
    schema: dict[str, Any] = {
        "anyOf": [
            {"type": "string", "pattern": r"^([\s:-]*[0-9A-Fa-f]{2})*[\s:-]*$"},
            *(
                {
                    "type": "object",
                    "properties": {key: {"type": "string"}},
                    "required": [key],
                    "additionalProperties": False,
                }
                for key in ("hex", "base64", "text", "file")
            ),
        ]
    }
    if kind.most is not None:
        limit = f"{kind.least} to {kind.most} bytes"
        schema["description"] = f"{kind.description}; {limit}" if kind.description else limit
    elif kind.description:
        schema["description"] = kind.description
    return schema
