"""The codecs of EEPROM formats: those of `formats.eeprom`, and those of other distributions.

A distribution adds one by an entry point in the group ``blobstore.codecs``, whose
name is the type of sections and whose object satisfies `formats.eeprom.framework.codec.Codec`:

    [project.entry-points."blobstore.codecs"]
    acme-board = "acme_eeprom:CODEC"

What is here cannot be replaced.
"""

from __future__ import annotations

import dataclasses
import functools
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from formats.eeprom.framework.registry import MODULES, built_in_codec
from formats.errors import UnsupportedError

if TYPE_CHECKING:
    from formats.eeprom.framework.codec import Codec

#: The entry points' group.
GROUP: Final = "blobstore.codecs"


def codec_names() -> list[str]:
    """Return the types of sections for which there is a codec, in their order."""
    return sorted({*MODULES, *entry_points(group=GROUP).names})


@functools.cache
def find_codec(name: str) -> Codec[Any] | None:
    """Return the codec for a type of section, or None.

    Raises:
        UnsupportedError: A distribution adds one, and it cannot be used.
    """
    if name in MODULES:
        return built_in_codec(name)
    for point in entry_points(group=GROUP, name=name):
        feature = f"the codec {name!r} of {point.value}"
        try:
            codec: Any = point.load()
        except (ImportError, AttributeError) as error:
            raise UnsupportedError(
                f"{feature} cannot be loaded: {error}", feature=feature
            ) from error
        if not (
            getattr(codec, "name", None) == name
            and dataclasses.is_dataclass(getattr(codec, "model", None))
            and callable(getattr(codec, "decode", None))
            and callable(getattr(codec, "encode", None))
        ):
            raise UnsupportedError(f"{feature} is not a codec of that name", feature=feature)
        found: Codec[Any] = codec
        return found
    return None
