"""The NBD protocol without I/O: bytes in, values and bytes out.

NBD serves block devices to QEMU, libnbd and Linux. This room knows what the bytes on a
connection mean (``spec/nbd.md``, N1 to N22, N31 and N32), and neither sockets nor devices: the room
that has those (`blobstore.nbd`) hands over the bytes that arrived, in pieces of any size, and gets
events, which it answers. So every sequence of bytes can be tried in a test.

A connection has two parts. In the handshake the client asks which exports there are and
chooses one; in transmission it sends requests about that one.

What must not happen here:

- No bytes raise an exception. What breaks the protocol is the event `Ended` with the
  reason, or a request that is refused; what is only unknown is answered so (N4, N16).
- Nothing is allocated because of a length that was read. Data is kept as it arrives,
  and announcements beyond the limits (`numbers`) end the connection.
- A request is handed out only if it is whole and its flags and range were checked:
  who carries it out checks nothing again.

Begin with `model`, the values that come out. `handshake` reads options and answers them;
`transmission` reads requests, and `replies` encodes what they are answered with.
These are the server's side; `asking` is the client's. `numbers` has the constants and
limits, `structures` what messages begin with, `buffer` the bytes that wait for the rest.
"""
