"""The container's encoding: heads of items as bytes and as values.

This is the syntax of ``spec/container.asn1`` with rules C1 to C11 of
``spec/container.md``, as far as they can be seen in one head. What heads mean together,
what is authentic, and what counts after a crash is decided in `blobstore.container`.

The room is pure: bytes in, values out, and the other way round. There is no device, no
key and no error but `FormatError` and `UnsupportedError`. A head is 512 bytes; the blob
that follows it is never needed here.

What must not happen here:

- Nothing is read leniently. Each value has one encoding, and any other is refused:
  minimal lengths, minimal integers, nothing after the end (C1). A second spelling of a
  head would give its check a second meaning.
- No allocation has a size that was read and not yet limited.
- No hashing: `encoder` and `decoder` say where the check and the mac lie and which
  bytes go into them, and `blobstore.container.authentication` computes them.
- Unknown features are never reported as damage: they are unsupported (C15).

Begin with `model`, the values and their sizes. Then `der`, just enough DER to write a
container and to refuse what is not one; `encoder` and `decoder`; and `asn1`, the same
syntax for asn1crypto, which gives `verify` a second opinion (spec/decisions/0004).
"""
