"""The owner of an image: one process has it, and all others ask that one.

An image has one writer. While a machine runs, that is the owner, and programs, scripts
and the verbs of the command line reach the store through it: HTTP/1.1 on a Unix socket,
in which a blob is the body of a resource and its ETag is its generation. The rules are
O1 to O94 in ``spec/owner.md``, the schema is ``spec/owner.openapi.yaml``; why HTTP, h11
and threads, spec/decisions/0030.

All that the owner offers comes to one `blobstore.store.store.Store`: nothing here has a
way of its own to write. A reply that says that something was done is sent when it is
durable (O22). A process that may connect may read, so sockets are private to their user (O5).

What must not happen here:

- No bytes that a client sends end the owner, or make it use memory or time without
  bounds: everything has a limit, and a thread that fails takes its connection with it.
- No secret crosses a socket. The image is unlocked when the owner starts.
- Nothing that depends on a client goes on while the store is locked: a request is
  complete before anything is done, and the reply is sent after that.
- No error changes its class on the way: clients raise what `Store` would (O30).

Begin with `owner`, what one process has, and `routes`, which answers requests without
knowing sockets. `resources` says what there can be to ask for; `sections` is what there is
of the store. `requests` and `documents` are what goes in and out, `problems` are errors as
documents, `lines` is what takes long. `images` is what concerns the whole image (snapshots,
backups, its LUKS header, of which `remote_header` is the other end), `maintenance` what
puts a store right. `connection` speaks HTTP with one client, `server` has the threads,
`listening` the socket, and `serving` puts these together. `client` is the other end, and
`exchange` its HTTP; what it has in common with a store is `blobstore.store.protocol`, and
`blobstore.reaching` finds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import formats

# The public names, once: see `formats.public_names`.
if TYPE_CHECKING:
    __all__: list[str]

    from blobstore.owner.client import StoreClient as StoreClient
    from blobstore.owner.client import find_owner as find_owner
    from blobstore.owner.connection import Limits as Limits
    from blobstore.owner.serving import serve as serve
    from blobstore.store.protocol import AnyStore as AnyStore
    from blobstore.store.protocol import Changes as Changes
else:
    __all__, __getattr__, __dir__ = formats.public_names(__name__, __file__)
