"""What the verbs of the command line do.

Verbs about the queue and journeys query the running daemon over run/control.sock. If no daemon
runs, they take the locks and open the spool and the mail store. This package imports nothing, so
that a command that uses the daemon loads neither of them.
"""
