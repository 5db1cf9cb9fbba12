"""The gate: SMTP sessions in a process of their own, the child, which has no mail, queue or keys.

- `child`: what the process runs, and what it does when its owner ends
- `services`: what a session in the child asks, as calls to the owner
- `owner`: who may ask what, and the answers
- `keeper`: when a child starts, ends and is replaced; how connections and reloads reach it
- `wire`: the frames that each side sends
- `frames`: frames and descriptors between the two processes
- `sandbox`: what the kernel refuses to the child
"""
