"""A TPM emulator: libtpms with a store as its NVRAM, speaking swtpm's protocol.

QEMU talks to it as it talks to swtpm: commands of the TPM on a data channel, requests
that start, stop and move it on a control channel. What swtpm keeps in files is in
sections of a store. Its reason to exist is rule V16 of ``spec/vtpm.md``: no response
is sent before everything that its command changed is durable.

There is one TPM in a process, because libtpms has one (V2, spec/decisions/0025); an owner
with several has a process for each (`blobstore.owner.tpm.tpms`). The
main thread has the control channel and the signals, a second one the data channel, so
that a command can be cancelled (spec/decisions/0026). One lock lets one of them use
the TPM.

What must not happen here:

- No exception leaves a callback of libtpms: ctypes would print it and answer success
  (V3). It is kept, the callback answers failure, and it is raised again outside.
- Nothing is registered, deleted or written before all states in the image were read
  and checked (V6). A damaged state is never taken for that of a new TPM (V10).
- Nothing a client sends is trusted: lengths have limits before memory is allocated
  (V21, V51), and each request is complete before anything is done.
- While it serves, the image is locked (V40); only a migration gives it up (V41).

From Python, `Server.run` serves a TPM until a signal ends it:

    with blobstore.open("machine.img", b"passphrase") as store:
        tpm = vtpm.Tpm(vtpm.StoreNvram(store))
        server = vtpm.Server(tpm, vtpm.Channel(path=data), vtpm.Channel(path=ctrl))
        try:
            server.run()
        finally:
            server.close()
            tpm.stop()

Begin with `tpm`, the one TPM and what becomes of its state, `behaviour`, what its user
may choose, and `nvram`, which turns states into sections. Below them lie `libtpms`, which
binds the library, and `abi`, its interface. `commands` and `control` are the codecs of the
two channels; `dispatch` answers the control channel, `server` and `sockets` connect.
`transfers` is the form of a state on its way, `profile` the profile of a new TPM, `capture` records
commands. `capabilities` says what of swtpm there is; `swtpm_options` reads its options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import formats

# The public names, once: see `formats.public_names`.
if TYPE_CHECKING:
    __all__: list[str]

    from blobstore.vtpm.abi import log_libtpms as log_libtpms
    from blobstore.vtpm.behaviour import Behaviour as Behaviour
    from blobstore.vtpm.capabilities import libtpms_info as libtpms_info
    from blobstore.vtpm.capabilities import libtpms_profiles as libtpms_profiles
    from blobstore.vtpm.capabilities import swtpm_capabilities as swtpm_capabilities
    from blobstore.vtpm.capabilities import swtpm_text as swtpm_text
    from blobstore.vtpm.capture import CaptureOptions as CaptureOptions
    from blobstore.vtpm.commands import Startup as Startup
    from blobstore.vtpm.nvram import StoreNvram as StoreNvram
    from blobstore.vtpm.profile import ProfileSource as ProfileSource
    from blobstore.vtpm.server import Server as Server
    from blobstore.vtpm.sockets import Channel as Channel
    from blobstore.vtpm.tpm import Tpm as Tpm
    from formats.state.swtpm import Slot as Slot
    from formats.state.swtpm import TpmVersion as TpmVersion
else:
    __all__, __getattr__, __dir__ = formats.public_names(__name__, __file__)
