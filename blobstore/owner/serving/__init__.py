"""`blobstore serve` as a process: what it is told, how it begins, changes and ends.

A configuration is one frozen value: a list of fronts, each with the sockets that it
needs. The process opens the sockets, or gets them from systemd or from the process
before it, starts the fronts on them, and waits in its main thread for what is to be done:
end, read the configuration again, hand over. The rules are O123 to O143 and
O178 to O182 in ``spec/owner.md``; why fronts do not open sockets, spec/decisions/0037.

What must not happen here:

- Nothing is changed before all that could fail was tried: a configuration with an error,
  or a process that cannot take over, leaves everything as it was.
- No socket is closed while clients are to find the image: they wait in its queue.
- Nothing that depends on another process is waited for without a limit.

Begin with `config`, what can be said, and `fronts`, what a front is: the store itself
(`store_front`), NBD (`nbd_front`), TPMs (`tpm_front`) and files (`mount_front`). `places` has
the sockets, `open_fronts` what runs, `service` what the process waits for, and `running` starts
it; `showing` has a directory without an owner. `handing` is how one process gives everything to
the next.
"""
