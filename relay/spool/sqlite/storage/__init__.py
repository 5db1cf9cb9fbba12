"""What `relay storage` does with a spool from the outside: verify, back up, salvage.

Touches: copies and new files; the spool's own only to mend it, or to put a damaged one aside.
Promises: nothing that can still be read is lost.
"""
