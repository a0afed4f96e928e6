"""Whether two paths name one file."""

from __future__ import annotations

import os
from pathlib import Path


def is_same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Say whether both names are of one file, also by a link, or of one yet to be made."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    one, other = Path(one), Path(other)
    return one.exists() and other.exists() and one.samefile(other)
