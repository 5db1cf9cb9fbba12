"""The gate: the process that has the SMTP sessions, apart from mail, queue and keys.

- `frames`: frames and descriptors between the two processes
- `sandbox`: what the kernel refuses to the child
"""
