"""Step 5: apply the mail-flow rules of policies/ to a message before it is accepted.

Files are read only when the rules are loaded. An evaluation is a pure function; its cost is bounded
by the size of the message and the numbers of recipients and rules.

The rules and their files:

- `rule_files`: loads the rules of a folder; faults of keys, names and routes; slow patterns
- `table_reader`: reads a table of a rule file; faults with file, line and key
- `groups`: the address groups in policies/groups/NAME.txt
- `rules`: a rule and a test as values: its mode (enforce, audit, off) and on_error; how large a set
  of rules may be, and how much mail it may write about a message

What a rule asks and does:

- `conditions`: the keys of `when` and `unless`: sender, recipient, client, login, size, header ...
- `content_conditions`: the conditions on the content: attachment names and types, words and card
  numbers in the body, the kind of the message: automatic, list, signed, calendar ...
- `actions`: the keys of `then`, and which actions end a rule
- `recipient_actions`: the actions on who gets a message: reject, defer, discard, hold, next_hop,
  rate_limit (per sender, login or client), redirect, quarantine, bcc, journal, notify
- `content_actions`: the actions that edit a message: cc, set_header, remove_header, subject_prefix,
  set_sender, disclaimer; what a content is after the edits of a rule

The evaluation:

- `engine`: applies the rules in order: what each recipient gets, which copies differ
- `rule_book`: the rules of the operator and of tenants; whose rules run on a message
- `rule_index`: which rules can match a message at all, without evaluating each of them
- `message_view`: what conditions read of a message, each fact once
- `message_parts`: attachments and parts of a message, also in encoded ones; too many parts
- `archives`: what is in ZIP files; the bounds; requests to the child process that reads them
- `archive_child`: the child process: inflates, finds names and types; encrypted, unreadable files
- `attachment_names`: every file name and boundary that a program may read in a part's fields
- `body_text`: the text of a body as a reader sees it
- `globs`: how * and ? match
- `patterns`: regular expressions (RE2), and which are too slow
- `folding`: which characters are equal in comparisons, and which are invisible

Tests and explanations:

- `rule_test_reader`: reads [[test]] tables, and builds their messages
- `rule_tests`: runs the [[test]] tables; what `relay policy check` and `relay policy test` print
- `explanation`: why a rule matches or not (`relay explain`, `relay policy try`)

Elsewhere: what counts against a rate limit so far, and how much rules may hold:
`relay/transport/ingress/message_limits.py`; the verdict as a value:
`relay/base/message/verdict.py`; the text of a disclaimer in a message:
`relay/formats/disclaimer.py`; release of held mail: `relay/store/spool/shared/decisions.py`.
"""
