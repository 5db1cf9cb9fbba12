"""The mail store: mailboxes as Maildir++ directories, drafts, and their pending submissions.

It implements steps 1, 2 and 4 on disk (draft, pending submission, the original to Sent Items) and
local delivery in step 6. It touches the mail root, `.submissions/` in it, and the dead-letter
Maildir. When a call returns, its changes are durable, directories included. A crash between any two
operations loses nothing and duplicates nothing. Other mail programs may use the Maildirs at the
same time.

`store` is made of parts: `messages`, `folder_tree`, `attachments`, `upload_sessions`, `arrivals`
and `settings_file` have the operations of Graph, `submit` steps 1 and 2, `ready_submissions` what
pickup needs, step 4 included, `inbox` local delivery. `draft_files` is the format of drafts, the
package `submissions` the pending submissions on disk. `index` finds messages, `quota` limits
mailboxes, `verify` is `relay storage verify`.
"""
