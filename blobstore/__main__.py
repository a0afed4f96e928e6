"""Where the `blobstore` command starts, and `python -m blobstore`."""

from __future__ import annotations

import gc

#: Containers that may be made before the collector looks for cycles; 700 by default.
_THRESHOLD = 50_000


def start() -> None:
    """Run the command line; does not return.

    Starting makes many objects that stay, and the collector goes over all of them
    again and again: that and its last round are 8 ms of 90. So it waits for more of
    them, and at the end leaves to the system what the process had.
    """
    gc.set_threshold(_THRESHOLD)
    from blobstore.cli.main import main  # noqa: PLC0415  with the collector at rest

    try:
        main()
    finally:
        gc.freeze()


if __name__ == "__main__":
    start()
