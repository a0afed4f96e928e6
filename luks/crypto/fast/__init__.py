"""The same ciphers over many sectors at once, with NumPy or with one context.

A call into OpenSSL costs more than encrypting a sector of 512 bytes. So this room makes
few calls: it computes the IVs or tweaks of all sectors of a chunk, XORs them onto the
data with NumPy, and processes the whole chunk in one call. The result equals that of
`luks.crypto.modes`, byte for byte; tests compare the two.

The module `luks.crypto.ciphers` chooses this way where it is faster, depending on the
number and size of the sectors. Only then is NumPy imported (spec/decisions/0013).

What must not happen here:

- No cipher is available only here. Everything works without this room, but slower.
- No behaviour that `cryptography` does not promise is relied on untested: it is tried
  once per process and compared with a promised way, which is used if the trial fails
(`xts`, `wide_aes`).
- Work areas live as long as the process, so no secret stays in one after a call.

Begin with `bulk`, the interface: it decides for which requests this way is taken.
`bulk_ivs` numbers sectors and makes IVs; `cbc_bulk` and `xts_bulk` are the two modes.
`wide_aes` is AES over many blocks in one call, `xts_tweaks` the tweaks of XTS. `xts` is
AES-XTS for few sectors, without NumPy.
"""
