"""What the spool has on its disk beside the database: larger contents, and room that is kept.

Touches: the content directory and the ballast. Promises: a content is on the disk before a row
names it; nothing comes in that would take the room with which the queue can still end.
"""
