"""Device state as other programs store it: bytes to values and back.

swtpm's files of a TPM, one state or several in a linear file, and as they travel between
machines; OVMF's flash with UEFI variables; QEMU's variables in JSON. Rules: F7 to F10,
F13 to F15 and F19 to F21 of ``spec/foreign-state.md``, V31 to V33 of ``spec/vtpm.md``,
each with the source it was taken from.

The room is as pure as the other codecs are. It reads no directories, takes no locks,
holds no keys: `blobstore.foreign` has the files and the decryption, `blobstore.vtpm`
the TPM.

What must not happen here:

- Nothing is repaired or completed. Bytes are what their program wrote, or they are
  refused with the offset and the rule.
- What is not understood inside a state is kept byte for byte: it is libtpms's and
  edk2's, and what is exported must be what was imported (F4).
- A length that was read is compared with what is there before anything is allocated.

Begin with `swtpm`, the header and fields of a TPM's state; `swtpm_linear` and
`swtpm_migration` are built from it. `edk2_varstore` and `uefi_vars` stand for
themselves.
"""
