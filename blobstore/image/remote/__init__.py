"""Devices that are not files of this machine: exports of NBD servers, and images of Ceph RBD.

A place is named by a text (P1 to P3), and opened as a `BlockDevice`, on which a store or a LUKS
volume lies as on any other. What differs from a file: the server may go away, what was
written is durable only after a flush that it answered, and another host may want the
image. The rules are in ``spec/places.md``, and N60 to N82 in ``spec/nbd.md``.

What must not happen here:

- No flush returns before the server has said that everything before it is durable.
- Nothing that was written and not flushed is lost with a connection: it is sent again, in its
  order, or the device fails (N66).
- No device is written by two hosts where the place can prevent that: images of RBD are locked,
  and a host that is taken over from is shut out first (P6). Where a place cannot, as with
  NBD, this is said (P5).
- Nothing that a server sends is believed: what breaks the protocol ends the connection.

Begin with `places`, what can be named; `blobstore.image.place` decides what is one. `nbd_disk`
is an export as a device, `nbd_connection` one connection to its server, `nbd_connections` those
that threads share, and `unflushed` what is sent again on another; `tls` encrypts it, and
`host_lock` keeps other processes of this machine away. `rbd_disk` is an image of Ceph as a
device, `rbd_snapshots` are its snapshots, and `librbd` binds Ceph's libraries, which are loaded
only for that.
"""
