"""`blobstore` of another version, as far as TPMs go: ``python -m tests.owner.older ARGUMENTS``."""

from __future__ import annotations

from blobstore.__main__ import start
from blobstore.owner.serving import tpm_front

if __name__ == "__main__":
    vars(tpm_front)["PROTOCOL"] = 0
    start()
