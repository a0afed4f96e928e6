"""The owner of an image: one process has it, and all others ask that one.

An image has one writer. While a machine runs, that is the owner, and programs, scripts and the
verbs of the command line reach the store through it: HTTP/1.1 on a Unix socket, in which a blob is
the body of a resource and its ETag is its generation. Rules: O1 to O224 in ``spec/owner.md``, the
schema is ``spec/owner.openapi.yaml``; why HTTP, h11 and threads, spec/decisions/0030.

All that the owner offers comes to one `blobstore.store.store.Store`: nothing here writes by
itself. A reply that says that something was done is sent when it is durable (O22). A process
that may connect may read, so sockets are private to their user (O5).

What must not happen here:

- No bytes that a client sends end the owner, or make it use memory or time without
  bounds: everything has a limit, and a thread that fails takes its connection with it.
- No secret crosses a socket. The image is unlocked when the owner starts.
- Nothing that depends on a client goes on while the store is locked: a request is
  complete before anything is done, and the reply is sent after that. Only the copy of an
  image is waited for, half a minute at most (O176).
- No commit waits for a client that watches or reads: what is told about is remembered, for
  a while, and those who are late are told that they missed something (O68).
- No flush confirms data that is not durable, even if another process took the write (O64).
- No error changes its class on the way: clients raise what `Store` would (O30).
- Nothing but h11 decides what is HTTP: what is known was read by it before (O170).

Begin with `owner`, what one process has, and `routes`, which answers requests without knowing
sockets. `resources` says what there can be to ask for; `sections` is what there is of the store,
`windows` its windows, `grouping` puts for many clients at once, and `changes` what was committed.
`images` is what concerns the whole image (snapshots, backups, its LUKS header, of which
`remote_header` is the other end), `reencryption` how it is re-encrypted, by `moving` (and
`passing_secrets`), `maintenance` what puts a store right, and `lines` what takes long. `requests`
and `documents` are what goes in and out, `problems` are errors as documents. `lifecycle` lets
others have the image, and `resting` keeps it as it is for a copy; both by connections that
`upgrading` makes of HTTP. `connection` answers one client, within its `limits` and out of the
memory that `budget` has for all: `receiving` reads requests, some of them by `heads` that are
known, and `replies` are bytes. `server` has the threads, `listening` the socket, and the room
`serving` is the process. `client` is the other end, `exchange` its HTTP, and `client_transaction`,
`client_windows` and `client_changes` are what it makes; it has `blobstore.store.protocol` in
common with a store, and `blobstore.reaching` finds it. `sharing` serves a store beside another
task, and the room `tpm` has the TPMs of an owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import formats

# The public names, once: see `formats.public_names`.
if TYPE_CHECKING:
    __all__: list[str]

    from blobstore.image.fencing import require_fenced as require_fenced
    from blobstore.owner.client import StoreClient as StoreClient
    from blobstore.owner.client import find_owner as find_owner
    from blobstore.owner.client_changes import ClientWatch as ClientWatch
    from blobstore.owner.client_windows import ClientWindow as ClientWindow
    from blobstore.owner.limits import Limits as Limits
    from blobstore.owner.owner import Front as Front
    from blobstore.owner.owner import Owner as Owner
    from blobstore.owner.serving.config import ServeConfig as ServeConfig
    from blobstore.owner.serving.config import load_serve_config as load_serve_config
    from blobstore.owner.serving.config import serve_schema as serve_schema
    from blobstore.owner.serving.mount_front import MountFront as MountFront
    from blobstore.owner.serving.nbd_front import NbdFront as NbdFront
    from blobstore.owner.serving.running import Beginning as Beginning
    from blobstore.owner.serving.running import serve as serve
    from blobstore.owner.serving.showing import show as show
    from blobstore.owner.serving.store_front import StoreFront as StoreFront
    from blobstore.owner.serving.tpm_front import TpmFront as TpmFront
    from blobstore.owner.sharing import OnlyTpm as OnlyTpm
    from blobstore.owner.sharing import Sharing as Sharing
    from blobstore.owner.tpm.options import TpmOptions as TpmOptions
    from blobstore.owner.tpm.tpms import Tpms as Tpms
    from blobstore.store.protocol import AnyStore as AnyStore
    from blobstore.store.protocol import AnyWatch as AnyWatch
    from blobstore.store.protocol import AnyWindow as AnyWindow
    from blobstore.store.protocol import Changes as Changes
else:
    __all__, __getattr__, __dir__ = formats.public_names(__name__, __file__)
