"""The device state of other programs, in and out (``spec/foreign-state.md``).

The formats themselves are in `formats`; here is what needs a store, files or
cryptography.
"""
