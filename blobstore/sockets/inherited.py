"""Descriptors that systemd passes to a service (sd_listen_fds(3))."""

from __future__ import annotations

import os
from typing import Final

from formats.errors import ArgumentError

#: The first of them.
FIRST: Final = 3
_MOST: Final = 1024
#: What a descriptor is called that has no name.
_UNNAMED: Final = "unknown"


def inherited_descriptors() -> dict[str, int]:
    """Return the descriptors that this process was given, by name, and forget them (O127).

    They are not inherited further, and neither is what says so.

    Raises:
        ArgumentError: What says so contradicts itself.
    """
    process = os.environ.pop("LISTEN_PID", None)
    count = os.environ.pop("LISTEN_FDS", None)
    names = os.environ.pop("LISTEN_FDNAMES", None)
    if process is None or count is None or process != str(os.getpid()):
        return {}
    if not count.isdecimal() or int(count) > _MOST:
        raise ArgumentError(f"LISTEN_FDS must be a number up to {_MOST}, not {count!r} [O127]")
    descriptors = range(FIRST, FIRST + int(count))
    known = [_UNNAMED] * len(descriptors) if names is None else names.split(":")
    if len(known) != len(descriptors):
        raise ArgumentError(f"LISTEN_FDNAMES names {len(known)} descriptors, not {count} [O127]")
    for name in known:
        if known.count(name) > 1:
            raise ArgumentError(
                f"two descriptors are called {name!r} [O127]: set FileDescriptorName= in each"
                " socket unit"
            )
    for descriptor in descriptors:
        try:
            os.set_inheritable(descriptor, False)
        except OSError as error:
            raise ArgumentError(f"LISTEN_FDS names descriptor {descriptor}: {error}") from error
    return dict(zip(known, descriptors, strict=True))
