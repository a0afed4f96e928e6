"""The store: what users call. One object for an open container, safe between threads.

This room gives the container (`blobstore.container`) what a user expects of it: names,
methods that block until what they did is durable, a lock, and an end. The rules of the
format are not here. A method finds its sections, checks what the caller asks for, takes
the lock, and has the container do it.

The promises are these. When `put` or a transaction returns, its change is durable;
when it raises, the store holds exactly the old state or the new one, and says
`PoisonedStoreError` if it does not know which (C51, C63). What `get` returns has been
verified (C23). A store that is not what its user relies on, because it is not
encrypted, or older than it was, is refused before anything is read from it (C25;
`reliance`).

What must not happen here:

- No method touches the container without the lock, nor after `close`.
- Nothing is read from a head or written to a device here: that is the container's.
  The exceptions are `windows`, which reads and writes blobs in place (C62), and
  `payload`, which reads what lies there and says nothing of what it means.
- What the caller got wrong is a `TypeError` or `ValueError`, and it changes nothing.
  What a file or device got wrong is a `StorageError`, never one of the two.
- No path: a store can lie on any `BlockDevice`. `blobstore.opening` knows images; the layers of
  one are looked at by `snapshots` and `header_area`, for what concerns the whole image.

Begin with `store`, the class that users see: each method with its documentation. What
its methods share, and ask before they begin, is in `session`. Then read `transaction`
(changes of several sections that become one commit), `lookup` (names, and what may be
said of those that are missing), `description` (what a store says of itself), `reliance`,
`handover` (letting another process have the image), `moving` (an image that is re-encrypted
meanwhile), `payload` (what lies below, to be
read), `snapshots` (of the disk that the store lies in), `header_area` (the LUKS header in it),
`changes` and `news` (telling those who watch of commits), and `verifying` (reading records
while others use the store). `protocol` is what a store has
in common with the client of an owner. The room `windows` makes
sections into block devices.
"""
