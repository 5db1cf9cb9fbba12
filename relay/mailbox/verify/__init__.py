"""`relay storage verify`: check the files of the mail store, and repair what other files imply.

It neither changes the content of a message nor deletes mail: a file that cannot be repaired is
moved to `.submissions/corrupt/`.

- `check_mailboxes`: a mailbox: directories, folder ids, shared ids, subscriptions, states, index
- `check_messages`: files of messages: size in the name, owner, incomplete drafts
- `findings`: the kinds of faults, and their repairs

Elsewhere: which mailboxes are checked, and the check of submissions: `relay/outbox/verifier.py`.
"""
