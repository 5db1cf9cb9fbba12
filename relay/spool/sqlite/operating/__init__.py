"""What operators do with the queue (spool.operating has the words): find, list and change entries.

Touches: the database, through the one writer. Promises: each change is in the journey of its
message, with who made it and why.
"""
