"""Sockets that listen: made in one way, for the owner's, those of NBD and those of TPMs.

A server listens at an address: a path, a port, or a descriptor that it was given. What
holds of each is here (O120 to O122 in ``spec/owner.md``): who may connect from the first
moment, what is in the way, and what is removed at the end.

What must not happen here:

- No socket is ever open to more users than it is to be, not even between two calls.
- Nothing is removed but a socket at which no process listens, and what this process made.
- Nothing of a protocol is known here.

Begin with `listening`, which makes sockets. `addresses` says where they are, `peers` who is
at the other end. What a service manager has to do with it: `inherited` finds the sockets that
it opened, `notifying` tells it how the process is doing.
"""
