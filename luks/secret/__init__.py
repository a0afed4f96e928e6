"""Secrets: where they come from, and where they must never go (``spec/secrets.md``).

A `Secret` holds bytes that are not shown, not pickled, not copied by accident, and
overwritten after use. All passphrases, key files and volume keys are passed as `Secret`s.
This room makes them from terminals, files, descriptors, credentials, commands, the
kernel's keyrings, and objects as QEMU defines them (S10 to S26); the rest of the project
passes them on.

The promise covers only the memory of this project: the interpreter, OpenSSL and the
operating system may hold copies that it cannot reach (``docs/secrets.md``).

What must not happen here, nor with anything that comes from here:

- No message, log record, ``repr``, traceback or exception contains a secret or a part
  of it, nor an exception of a library that may hold one (S1, S25).
- No secret is passed on in an argument, an environment or a temporary file (S2).
- No buffer that held a secret is replaced or dropped before it is overwritten, even on
  errors (S3). So secrets are read directly into memory that can be wiped.
- Two sources for one secret are an error; neither is silently preferred (S30).
- Nothing is read, and no command run, before the secret is needed (S26).

Begin with `secrets`. The sources are `secret_sources`, `terminal` and `keyring`; QEMU's
objects are in `secret_objects` and `secret_codec`. `randomness` provides new keys and
salts, from the operating system or from a seed for reproducible images
(spec/decisions/0015).
"""
