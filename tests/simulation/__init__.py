"""Simulations: the product's own code on hosts, disks and a network that a seed decides.

`tests.model` enumerates short histories of the commit protocol. This is about long ones of the
whole: an owner with its clients, two hosts, a disk here, there or between them, and everything
that goes wrong with these, at any step. It is how FoundationDB and TigerBeetle are tested: one
process, one seed, and a failure that can be had again.

How it runs
    - The threads of all simulated programs are greenlets, of which exactly one runs. Where a
      program uses the system (a disk, a socket, a lock, the clock), the scheduler decides what
      happens next. Each such decision is a **step**: a thread goes on, a message arrives, a timer
      rings, a fault strikes (`scheduler`). There is no other source of chance or of time.
    - The product is not changed for that. Its modules name the system by `threading`, `time`,
      `socket`, `select`, `selectors`, `secrets` and `os.urandom`; during a simulation these names
      mean those of `threads` and `socket_modules` (`substitution`); `sockets` and `network` are
      what the latter lead to. What lies on the disk goes through a `BlockDevice` (`disk`).
    - `programs` puts the product together as its commands do: a store with an owner's HTTP server
      and an NBD front, on a disk of its host, or over the network on one that an NBD server of
      the product exports, or on one that two hosts share, where the second takes over by fencing.
      `workload` is its clients: they put, read, compare and set, commit transactions, write
      windows over HTTP and NBD, make and delete sections, watch changes, and change keys. `world`
      restarts what died.
    - `plans` draws from the seed which of these there are and which faults happen; `faults` has
      them happen: processes die, hosts lose power (unflushed writes are lost, torn, reordered),
      links are cut, connections reset, requests of disks are slow or fail or find no space, and
      another host takes the image.
    - `checker`, `windows`, `watches`, `structure` and `keys` know what was acknowledged and what
      each reader may see, and `verify` has to be clean after each recovery. `mutants` breaks the
      product, and each has to be found. `run` is one simulation, or many.

What is not simulated is in spec/decisions/0042.

How to run it
    `pytest tests/simulation` runs a million steps. ``python -m tests.simulation --seed N --steps
    M --report`` runs any number; a failure prints its seed, its step, the last events, and the
    command that has it again.
"""
