"""Device state as other programs store it: bytes to values and back.

swtpm's files of a TPM, one state or several in a linear file, and as they travel between
machines; OVMF's flash with UEFI variables; QEMU's variables in JSON. Rules: F7 to F10,
F13 to F15, F19 to F21 and F30 to F42 of ``spec/foreign-state.md``, V31 to V33 of ``spec/vtpm.md``,
each with the source it was taken from.

The room is as pure as the other codecs. It reads no directories, takes no locks and
holds no keys: `blobstore.foreign` has the files and the decryption, `blobstore.vtpm`
the TPM.

What must not happen here:

- Nothing is repaired or completed, except by `uefi` on request. Bytes are as their
  program wrote them, or they are refused with the offset and the rule.
- The inside of a state, which belongs to libtpms or edk2, is kept byte for byte: an
  export must equal what was imported (F4).
- A length that was read is compared with the bytes at hand before anything is allocated.

Begin with `swtpm`, the header and fields of a TPM's state; `swtpm_linear` and
`swtpm_migration` are built from it, and `swtpm_older` is what there was before.
`edk2_varstore` and `uefi_vars` are independent; the room `uefi` opens up what is in them.
"""
