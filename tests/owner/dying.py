"""`blobstore` that is killed at one point: ``python -m tests.owner.dying POINT ARGUMENTS``.

A point is ``module:Class.method:before`` or ``…:after``, with ``:N`` for the Nth call. Where
``ENDS`` is in the environment, the process with that number is ended instead, in good order.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from blobstore.__main__ import start


def die_at(point: str) -> None:
    """End this process by SIGKILL when the point is reached."""
    module, path, when, *number = point.split(":")
    name, method = path.split(".")
    owner = getattr(importlib.import_module(module), name)
    original = getattr(owner, method)
    left = [int(number[0]) if number else 1]

    def die() -> None:
        other = os.environ.get("ENDS")
        if other is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            os.kill(int(other), signal.SIGTERM)
            while Path("/proc", other, "stat").read_text().split()[2] != "Z":
                time.sleep(0.01)  # its parent, the test, asks for it later

    @functools.wraps(original)
    def dying(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and when == "before":
            die()
        result = original(*args, **kwargs)
        if left[0] == 0 and when == "after":
            die()
        return result

    setattr(owner, method, dying)


if __name__ == "__main__":
    die_at(sys.argv.pop(1))
    start()
