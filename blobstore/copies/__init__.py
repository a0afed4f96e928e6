"""Whole images into other images: copy, backup, clone, convert; and comparing two of them.

What the functions here have in common is that they have two images at once. They
differ in what they preserve:

- `copy` makes the bytes of another place those of the image, without a key, and can let
  the copy be the image from then on (P40 to P49).
- `backup` copies an image as it lies, still encrypted, while its store is in use. It
  stays the same store, with the same id.
- `clone` makes another store with the same sections: new id, new keys.
- `convert` carries a payload into an image of another kind or with other encryption.
  A store stays the same store there, but everything that its key goes into is made
  again (C80, C81); any other payload is copied byte by byte.
- `compare` reads two stores and says how their sections differ.

What must not happen here:

- A source is never changed, not even recovered: it is opened read-only, unless it is
  handed over. What is read from it is verified before it counts, except where an image is
  copied as it lies.
- A target never looks complete before it is. It gets its name when all of it is
  durable, and its header is written last (C81, P41 to P43).
- Nothing is converted in place (spec/decisions/0012).
- No image is opened here by anything but `blobstore.image`, nor a container by
  anything but `blobstore.opening` and `blobstore.container`.

Begin with `convert`. It uses `convert_ends` (the source and the destination as values
that are checked before anything is opened), `convert_kinds` (the kinds of images by name),
`convert_store` (a store, section by section), `convert_bytes` (any payload, with
several workers) and `convert_ranges` (which bytes were ever written). `clone`
and `compare` stand for themselves. `backup` copies what others may be writing, by `copier`;
a store that is open here, by `running`. `whole` is `copy`: it opens the devices and asks
the owner, and `passes` does the copying.
"""
