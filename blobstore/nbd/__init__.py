"""A server that exports sections of a store as network block devices (NBD).

QEMU's pflash and EEPROMs, and every other program that speaks NBD, read and write their
sections through it, while the store stays open in one process. `formats.nbd` knows the
protocol; this room has the sockets, the threads, and what a request does
(``spec/nbd.md``, N11 and N19 to N59).

Each connection has a thread, which carries out one request after the other: the answer
is sent by the thread that did the work, without handing over between threads. All connections
to an export share one device. So a flush on one makes durable what any of them wrote,
and a window, of which a section has one, serves several clients (N24).

What must not happen here:

- No answer to FLUSH or FUA is sent before the store says that it is durable (N27).
- No bytes from a client end the server, or keep a thread or memory for good: sizes,
  connections, and the time that half a message may take are bounded (N11, N22, N29).
- A section is never written around its store: a window is the only way, and the
  payload of a store is only read (N26).
- Where a server has TLS, nothing but the fact is told without it, and nothing that was said before
  holds within it (N31, N32). Keys are in no message and no log (N37).
- No error is answered with success. What storage raises becomes an error of the protocol (N19),
  and is logged.

Begin with `server`, what users call. `connection` speaks with one client, and `requests`
carries out what it asks. `exports` has the sections and devices that can be asked for,
and `catalogue` opens each once and closes it after its last client. `sockets` listens.
`settings` puts a server together from what users say. `wire` receives and sends, `tls` does so
within TLS, and `credentials` has what that needs.
"""
