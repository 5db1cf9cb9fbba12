"""What the spool's owner does at its start and from time to time: recovery, figures, history.

Touches: the database and the content directory. Promises: small steps, so that nobody waits long.
"""
