"""The TPMs of an owner: each is a process that has neither the image nor a key (V70 to V86).

libtpms has one TPM in a process, and reads what a guest sends it. So each TPM of an image is
a process of its own, the worker, which reaches its own sections over a connection to its
owner, and nothing else: a fault in the library does not end the owner, and gives away
neither other sections nor the key of the image.

What must not happen here:

- No TPM answers a command before what it changed is durable: a put of the worker is
  answered after the flush (O101).
- No TPM goes on from an old state: where another process had the image, its permanent
  state decides whether the worker goes on or is killed (V82).
- No TPM is given up silently: a worker that ends is logged and started again, up to a limit
  (V75), and its sockets stay where they are, so that clients wait (V72).
- Nothing waits for a TPM without a limit (V77, V78).
- No two owners answer one worker: it is passed on at rest, and goes on when one of them is
  certain to have the image (V85).

Begin with `tpms`, which supervises the processes. `options` is what is said of a TPM,
`process` a worker from its owner's end, `lives` whether it runs, and `worker` its program.
The two speak by `messages`; `states` is how a worker reads and changes its sections.
"""
