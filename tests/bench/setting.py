"""Where and how much is measured."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.peers import PeerDirectory

#: The command line, as the script that pip installs runs it.
BLOBSTORE: list[str | Path] = [
    sys.executable,
    "-c",
    "from blobstore.__main__ import start; start()",
]
PASSPHRASE = b"benchmark"


@dataclass(frozen=True)
class Setting:
    """What all suites are told.

    Attributes:
        scale: ``"full"`` is what figures are quoted of, ``"quick"`` a glance, and
            ``"tiny"`` only shows that everything runs.
        memory: A directory in memory, so that no disk has a part in the figures.
        disk: A directory on a real disk; in memory, durability costs nothing.
        peers: Where packages of others are kept.
    """

    scale: Literal["full", "quick", "tiny"]
    memory: Path
    disk: Path
    peers: PeerDirectory
