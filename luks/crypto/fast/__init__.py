"""The same ciphers over many sectors at once, with NumPy or by one context.

A call into OpenSSL costs more than encrypting a sector of 512 bytes. So this room makes
few calls: it computes the IVs or tweaks of all sectors of a chunk, XORs them onto the
data with NumPy, and has one call go over the whole chunk. What comes out is what the
modes in `luks.crypto.modes` give, byte for byte; tests compare the two.

The module `luks.crypto.ciphers` chooses this way where it gains, by the number and size
of the sectors. NumPy is imported only then (spec/decisions/0013).

What must not happen here:

- No cipher is available here only. Everything works without this room, and slower.
- What `cryptography` does not promise is tried once per process and compared with
  what it does promise; where that fails, the slow way is taken (`xts`, `wide_aes`).
- Work areas live as long as the process, so nothing secret stays in one after a call.

Begin with `bulk`, the interface: which ciphers there are, and cutting requests into
chunks. `bulk_ivs` numbers sectors and makes IVs; `cbc_bulk` and `xts_bulk` are the two
modes. `wide_aes` is AES over many blocks in one call, `xts_tweaks` the tweaks of XTS.
`xts` is AES-XTS for few sectors, without NumPy.
"""
