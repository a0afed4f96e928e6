"""Whether two paths name one file."""

from __future__ import annotations

import os
from pathlib import Path


def is_same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Say whether both names are of one file, also by a link, or of one yet to be made."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    return is_there(one) and is_there(other) and Path(one).samefile(other)


def is_there(path: str | os.PathLike[str]) -> bool:
    """Say whether there is such a file. There is none where a name is too long, for instance."""
    try:
        return Path(path).exists()
    except OSError:
        return False
