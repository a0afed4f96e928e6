"""How much a test tries of what could be tried.

The suite that CI runs must end within the time that people wait for it, so tests that
could go through any number of states try a fixed sample of them. With
``BLOBSTORE_THOROUGH=1`` in the environment they try far more, which takes hours.
"""

from __future__ import annotations

import os

#: Set in the environment, tests try many cases instead of a sample.
THOROUGH = "BLOBSTORE_THOROUGH"


def cases(sample: int, thorough: int) -> int:
    """Return how many cases to try."""
    return thorough if os.environ.get(THOROUGH) else sample
