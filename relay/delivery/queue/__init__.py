"""Which claims are in memory, and whose turn is next: no queue is as long as the spool's.

Touches: nothing but the spool's due index, through what it is given.
Promises: what is stalled leaves room, and one sender's bulk does not delay another's message.
"""
