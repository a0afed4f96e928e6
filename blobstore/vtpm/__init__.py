"""A TPM emulator: libtpms with a store as its NVRAM, speaking swtpm's protocol.

The rules are those of ``spec/vtpm.md``. `libtpms` binds the library, whose interface
is in `abi`; `nvram` is its storage, `tpm` the one TPM of a process; `commands` and
`control` are the codecs of the two channels, `dispatch` answers the control channel,
`server` has the sockets, `options` and `process` are what swtpm's options ask for.
"""
