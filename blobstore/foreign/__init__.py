"""The device state of other programs, in and out (``spec/foreign-state.md``, F1 to F43).

swtpm keeps a TPM in a directory or in one linear file; OVMF keeps its variables in a
flash image; QEMU keeps them in JSON. An import puts what is there into sections of a
store, an export writes such files again. The formats as bytes are in
`formats.state`; this room has what needs a store, files, or cryptography.

The state is stored as swtpm's file is in the clear (spec/decisions/0009), so that an
import followed by an export gives every byte back (F4).

What must not happen here:

- An import is one transaction (F1): everything is read and checked before anything
  changes, and a section that has been written is not replaced unless the caller says
  so (F3).
- A file is not guessed at. What is damaged, cut short, of another format, or not
  decryptable is refused, each with an error of its own (F2).
- State that was encrypted is not stored in a store that is not, unless the caller
  permits it (F12).
- An export appears whole or not at all (F5); the one exception is a directory that
  exists already (F18).

Begin with `states`, the formats and the sections that they go to; then `importing` and
`exporting`. `swtpm_directory` has the files of one TPM and swtpm's lock on them,
`encryption` swtpm's encryption of a state (F10, F11), `key_source` where its key is.
`variables` are UEFI variables as a value that is changed, `variable_stores` the sections and
files that have them, `certificates` what is enrolled for Secure Boot.
"""
