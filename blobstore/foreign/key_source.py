"""Where the key of an encrypted TPM state is, spelled as swtpm's ``--key``."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from blobstore.foreign.encryption import StateKey
from formats.logs import LateLogger
from luks.secret.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = LateLogger(__name__)

_SOURCES: Final = ("file", "fd", "pwdfile", "pwdfd")
_TRUTH: Final = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class StateKeySource:
    """Where a key is, and what is made of it; the key itself is never in it.

    Attributes:
        place: File name or descriptor.
        is_descriptor: Which of the two.
        source: As in `StateKey`.
        mode: As in `StateKey`.
        remove: Whether the file is removed when the key was read.
    """

    place: str
    is_descriptor: bool
    source: str
    mode: str | None
    remove: bool = False

    @classmethod
    def parse(cls, text: str, *, removable: bool = False) -> Self:
        """Return what a text says, as swtpm's ``--key`` takes it.

        Args:
            text: ``file=FILE[,mode=MODE][,format=FORMAT]`` or
                ``pwdfile=FILE[,mode=MODE][,kdf=KDF]``, or with a descriptor ``fd`` or ``pwdfd``.
            removable: Whether ``remove`` or ``remove=true`` may be there (V91): the caller
                needs the key once.

        Raises:
            ValueError: It does not say where a key is.
        """
        options: dict[str, str] = {}
        for part in text.split(","):
            key, separator, value = part.partition("=")
            if part == "remove":
                value = "true"
            elif not separator:
                value = ""
            if not value or key in options:
                raise ValueError(f"{part!r} is not what swtpm's --key takes")
            options[key] = value
        sources = [key for key in _SOURCES if key in options]
        if len(sources) != 1:
            raise ValueError(f"name one of {', '.join(_SOURCES)}")
        source, place = sources[0], options.pop(sources[0])
        is_descriptor = source.endswith("fd")
        if is_descriptor and not place.isdecimal():
            raise ValueError(f"{place!r} is not a file descriptor")
        mode = options.pop("mode", None)
        if "remove" in options and not removable:
            raise ValueError("remove is not taken here: the file may be needed again")
        remove = options.pop("remove", "false").lower()
        if remove not in _TRUTH:
            raise ValueError(f"remove={remove} is neither true nor false")
        if source.startswith("pwd"):
            made_of, known = options.pop("kdf", StateKey.DERIVATIONS[0]), StateKey.DERIVATIONS
        else:
            made_of, known = options.pop("format", StateKey.FORMATS[0]), StateKey.FORMATS
        if made_of not in known:
            raise ValueError(f"{made_of!r} is not one of {', '.join(known)}")
        if mode is not None and mode not in StateKey.MODES:
            raise ValueError(f"{mode!r} is not one of {', '.join(StateKey.MODES)}")
        if options:
            raise ValueError(f"{', '.join(options)} does not go with {source}")
        return cls(place, is_descriptor, made_of, mode, _TRUTH[remove])

    @contextmanager
    def read(self) -> Iterator[StateKey]:
        """Yield the key; its secret is wiped at the end, and its file removed at once if asked.

        Raises:
            DeviceError: It cannot be read.
        """
        place = self.place
        opened = Secret.from_fd(int(place)) if self.is_descriptor else Secret.from_file(Path(place))
        with opened as secret:
            if self.remove and not self.is_descriptor:
                try:
                    Path(place).unlink()
                except OSError as error:  # swtpm goes on, too: the key is there
                    _log.warning("key file %s cannot be removed: %s", place, error.strerror)
            yield StateKey(secret, self.source, self.mode)
