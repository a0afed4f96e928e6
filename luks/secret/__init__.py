"""Secrets: where they come from, and where they never go (``spec/secrets.md``).

A `Secret` is bytes that are not shown, not pickled, not copied by accident, and
overwritten when they are done with. All passphrases, key files and volume keys travel
as one. This room makes them, from terminals, files, descriptors, credentials, commands,
the kernel's keyrings, and objects as QEMU defines them (S10 to S26); the rest of the
project hands them on.

What is promised ends where our memory ends: the interpreter, OpenSSL and the operating
system may hold copies that nobody can reach (``docs/secrets.md``).

What must not happen here, nor with anything that comes from here:

- No message, log record, ``repr``, traceback or exception contains a secret or a part
  of it, nor an exception of a library that may hold one (S1, S25).
- No secret is passed on in an argument, an environment or a temporary file (S2).
- A buffer that held a secret is overwritten before it is replaced or dropped, on
  errors too (S3). So reading goes straight into memory of ours.
- Two sources for one secret are an error. None is preferred in silence (S30).
- Nothing is read, and no command run, before the secret is needed (S26).

Begin with `secrets`. Then where they are read: `secret_sources`, `terminal`, `keyring`;
QEMU's objects: `secret_objects` and `secret_codec`. `randomness` is where new keys and
salts come from: the operating system, or a seed for reproducible images
(spec/decisions/0015).
"""
