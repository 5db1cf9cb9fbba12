"""The journal: what happened to a message, told as events, a journey, metrics and log lines.

On the path: beside every step; rooms hand in, web and the command line read.
Touches: the store's log of steps 1 to 4, stderr; steps 5 to 7 are the spool's to keep.
Promises: a journey is joined by submission id and ordered by step; a log line never waits.

Nothing is imported here: who reads a journey need not load what writes a log.
"""
