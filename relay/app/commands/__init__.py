"""What the command's verbs do: ask the running daemon, or the files where none runs.

Touches: run/control.sock; without a daemon the spool, the mail store and their locks. Promises:
who asks a daemon loads none of it, so nothing is imported here.
"""
