"""What swtpm's options say of a TPM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blobstore.foreign.encryption import StateKey
    from blobstore.vtpm.capture import Capture


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What swtpm's options say of a TPM.

    Attributes:
        reject_locality_4: Refuse to set locality 4.
        allow_set_locality: Commands may set the locality (V24).
        auto_shutdown: Shut a TPM 2.0 down that its user did not (V27).
        release_outgoing: Give the image up once the state was fetched (V41).
        incoming: The state is to come; the image is another process's until
            then, and no new TPM is made (V44).
        migration_key: Encrypts the state on its way.
        profile: Of the TPM 2.0 that is to be made, in libtpms's JSON (V100).
        capture: Where commands and responses are recorded (V104).
    """

    reject_locality_4: bool = False
    allow_set_locality: bool = False
    auto_shutdown: bool = True
    release_outgoing: bool = False
    incoming: bool = False
    migration_key: StateKey | None = None
    profile: str | None = None
    capture: Capture | None = None
