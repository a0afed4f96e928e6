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

from formats.eeprom.framework.registry import built_in_codec, built_in_names
from formats.errors import FieldError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from formats.eeprom.framework.codec import Codec

#: The entry points' group.
GROUP: Final = "blobstore.codecs"


class Codecs:
    """The codecs for types of sections: those of this project, of others, and of layouts."""

    def __init__(self, layouts: Iterable[Codec[Any]] = ()) -> None:
        """Take further codecs, which `load_layout` returns.

        Raises:
            FieldError: Two have the name of one type.
        """
        self._layouts: dict[str, Codec[Any]] = {}
        for layout in layouts:
            if layout.name in self.names():
                raise FieldError("name", f"there is a format {layout.name} already")
            self._layouts[layout.name] = layout

    def names(self) -> list[str]:
        """Return the types of sections for which there is a codec, in their order."""
        return sorted({*built_in_names(), *entry_points(group=GROUP).names, *self._layouts})

    def find(self, name: str) -> Codec[Any] | None:
        """Return the codec for a type of section, or None.

        Raises:
            UnsupportedError: A distribution adds one, and it cannot be used.
        """
        return self._layouts.get(name) or _find_codec(name)

    def require(self, name: str) -> Codec[Any]:
        """Return the codec for a type of section.

        Raises:
            UnsupportedError: There is none.
        """
        codec = self.find(name)
        if codec is None:
            known = ", ".join(self.names())
            raise UnsupportedError(
                f"there is no codec for {name!r}; there are {known}" if name else "it has no type",
                feature="a codec",
                hint=None if name else "name one with --type",
            )
        return codec


#: Without layouts.
USUAL: Final = Codecs()


@functools.cache
def _find_codec(name: str) -> Codec[Any] | None:
    """Return the codec for a type of section, or None.

    Raises:
        UnsupportedError: A distribution adds one, and it cannot be used.
    """
    if name in built_in_names():
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
