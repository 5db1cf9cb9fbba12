"""`relay storage verify`: check the files of the mail store, and repair what other files imply.

It checks mailboxes, their indexes and `.submissions/`. It neither changes the content of a message
nor deletes mail: a file that cannot be repaired is moved to `.submissions/corrupt/`.
"""
