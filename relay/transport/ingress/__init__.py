"""Step 5: the SMTP server, for clients and for pickup (end of step 3), up to the 250.

A 250 to the final dot, or to the last chunk, means that the message, its recipients and the reports
that are already due are durable. Only CRLF.CRLF ends DATA; only its length ends a chunk of BDAT.
Clients that are not trusted cannot relay. The reply to an internal error is 4yz with a fixed text.

The session:

- `listener_role`: what clients of a listener must do; which checks the mail of this machine skips
- `smtp_server`: a listener: which clients are trusted; hands connections on
- `smtp_sessions`: the sessions of a listener: implicit TLS, graceful stop
- `proxy_header`: the PROXY protocol: which headers of a proxy are taken, and which client they name
- `smtp_session`: a connection: lines, pipelining, STARTTLS; time-outs, what is progress (421)
- `places`: too many sessions (421): of strangers, trusted clients, logins; who loses a place
- `session_client`: the client as a session knows it: address, trust, the functions that ask the
  owner of the mail; what the sessions of a listener share
- `session_owner`: the owner's side of a session: the login; the reply to RCPT: relaying denied,
  unknown user, mailbox full; the task of the acceptance
- `session_limits`: the numbers: length of lines, failed logins, time-outs of one session
- `smtp_commands`: each command and its reply: EHLO, STARTTLS, AUTH, MAIL, RCPT, DATA, BDAT; limits
  of recipients and size; whether TLS, AUTH or a login is required; too many errors, messages (421)
- `esmtp_parameters`: the syntax of MAIL and RCPT: SIZE, BODY, SMTPUTF8, RET, ENVID, NOTIFY, ORCPT
- `authentication`: AUTH: PLAIN, LOGIN, XOAUTH2, OAUTHBEARER; the replies to a failed login
- `send_as`: which sender, From and Sender an account or a local user may use; null MX (5.7.27)
- `strangers`: clients that are refused by what the DNS says: unknown sender domain (5.1.8), no PTR,
  the name in EHLO, DNSBL; which zones are left out
- `session_refusals`: which refused commands are recorded, with which reason

Mail of the machine:

- `local_users`: which user sends on the socket of [sendmail], as the kernel says; USER@hostname
- `dropped_mail`: the file that `relay sendmail` leaves while no relay runs; which files are hostile
- `maildrop`: takes these files: the submission key, what is moved aside, what cannot be removed

The content and its acceptance:

- `data`: DATA, BDAT: the end of the content (SMTP smuggling), bare CR or LF, long lines, large mail
- `acceptance`: step 5 in its order, from the final dot to the 250: milters, aliases, rules,
  fan-out, signatures, limits, commit; when the entry expires and a delay is reported
- `stages`: the values that its stages hand on
- `decision`: the stages that commit nothing: aliases and routes, what rules see, verdict, fan-out
- `arrival`: a message before its rules: checks of its header, mail loops; when milters see it; the
  replies to the final dot; the log line about accepted mail
- `sender_checks`: what SPF, DKIM and DMARC results do to a message of a stranger; exceptions
- `filtering`: milters in a session, real or simulated; what their answers do to a message
- `header_cleanup`: Received, Bcc, missing Date and Message-ID, Return-Path, Authentication-Results
- `forwarding`: what an address leads to (alias, forward_to, SRS); who may write to an alias; the
  recipients that replace it, their NOTIFY and ORCPT; redirected or expanded; which mail is not
  forwarded again; whose name a stranger's mail may not have where it leaves (5.7.1, 4.7.1)
- `author_names`: the addresses in From and Sender, and whether programs may read others
- `fanout`: which recipients share a queue entry (next hop, content); those rejected or held
- `message_limits`: rate limits of rules, messages of an address (450), answers to MAILER-DAEMON,
  how much rules may hold
- `rule_mail`: journal reports and notices of rules: what they say; a notice once in an hour
- `policy_threads`: which message gets a thread for its rules, and when a rule is stopped

Elsewhere: which addresses are valid, postmaster too: `relay/transport/routing/route_table.py`; what
rules decide: `relay/transport/policy/engine.py`; who gets a bounce:
`relay/delivery/reports/bounces.py`; passwords and guessing: `relay/base/accounts/passwords.py`;
when mail is refused for lack of disk or memory: `relay/base/pressure.py`.
"""
