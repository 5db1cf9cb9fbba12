"""The gate: SMTP sessions in a separate process, the child.

The child reads what clients send, and has the TLS certificates with their keys. It has no access to
stored mail, the queue, accounts, rules or signing keys: these are of the other process, the owner.

- `child`: what the child process runs, and what it does when its owner ends
- `services`: the functions of a session in the child, as calls to the owner
- `owner`: which calls a session may make, and the answers
- `keeper`: when a child starts, ends and is replaced; how it gets connections and reloads
- `wire`: the frames that each side sends
- `frames`: sends frames and descriptors between the two processes

Elsewhere: what the kernel refuses to the child: `relay/base/sandbox.py`.
"""
