"""Models of EEPROM formats made from their annotations, for Hypothesis."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any, get_args, get_origin

from hypothesis import strategies as st

from formats.eeprom.framework.annotations import bare, fields_of, members_of
from formats.eeprom.parts.texts import LATIN1, LATIN1_WITHOUT_NUL, PRINTABLE

#: Patterns that text drawn from characters matches; from the pattern it takes long.
_CHARACTERS: dict[str | None, st.SearchStrategy[str]] = {
    PRINTABLE: st.characters(min_codepoint=0x20, max_codepoint=0x7E),
    LATIN1: st.characters(max_codepoint=0xFF),
    LATIN1_WITHOUT_NUL: st.characters(max_codepoint=0xFF),
}
#: Items of tuples, and bytes and characters, where nothing limits them.
_MANY, _LONG = 4, 40


def models(model: type, **chosen: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return instances of a dataclass within the limits that its annotations have.

    Args:
        model: The dataclass.
        chosen: Instead of what the annotation of a field would allow.
    """
    fields = {
        field.name: chosen.get(field.name, values(annotation))
        for field, annotation in fields_of(model)
    }
    return st.builds(model, **fields)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Return values within the limits of an annotation."""
    inner, meta = bare(annotation)
    least = (meta.min_length if meta else None) or 0
    most = meta.max_length if meta and meta.max_length is not None else None
    if (kinds := members_of(inner))[1:]:
        return st.one_of(*map(values, kinds))
    if inner is bytes:
        return st.binary(min_size=least, max_size=_LONG + least if most is None else most)
    if inner is bool:
        return st.booleans()
    if inner is int:
        lowest, highest = (meta.ge or 0, meta.le) if meta else (0, None)
        return st.integers(int(lowest), None if highest is None else int(highest))
    if inner is str:
        longest = _LONG if most is None else most
        pattern = meta.pattern if meta else None
        if pattern is None or pattern in _CHARACTERS:
            texts = st.text(_CHARACTERS.get(pattern, st.characters()), max_size=longest)
            return texts.map(lambda text: text.rstrip("\x00")) if pattern else texts
        return st.from_regex(pattern).filter(lambda text: len(text) <= longest)
    if inner is type(None):
        return st.none()
    if isinstance(inner, type) and issubclass(inner, Enum):
        return st.sampled_from(inner)
    if dataclasses.is_dataclass(inner):
        assert isinstance(inner, type)
        return models(inner)
    if get_origin(inner) is tuple:
        items = values(get_args(inner)[0])
        return st.lists(items, min_size=least, max_size=min(_MANY, most or _MANY)).map(tuple)
    if get_origin(inner) is Mapping:
        return st.dictionaries(st.text(max_size=_MANY), values(get_args(inner)[1]), max_size=_MANY)
    raise TypeError(annotation)
