"""How the spool uses SQLite: its schema, one connection that writes, readers beside it, the log.

Touches: the spool's file and its write-ahead log. Promises: what submit() has answered outlives a
loss of power; what SQLite or the disk says comes out as one of spool.types' exceptions.
"""
