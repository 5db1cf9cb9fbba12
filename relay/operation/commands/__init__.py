"""What the verbs of the command line do.

Verbs about the queue and journeys ask the running daemon over run/control.sock. If no daemon runs,
those that only read take the locks and open the spool and the mail store. This package imports
nothing, so that a command that uses the daemon loads neither of them.

- `operator_client`: what trace, show, queue and explain ask: the daemon, else the files
- `offline`: opens the files of the spool while no daemon runs; pauses for the next start
- `sendmail`: the message that sendmail sends: recipients of the header (To or Resent-To), missing
  fields; SMTP of `-bs`
- `account`: how accounts.toml is changed in place; new tokens, client secrets, hashes of passwords;
  which users a CSV or a passwd-file of Dovecot names
- `dkim`: new DKIM keys: their file, owner and DNS record; whether records are published, warnings
- `dns`: asks the DNS for `relay dns`: SPF with its includes, MX, TLSA ...
- `dns_records`: what to publish for a domain, and what is wrong with what is published: MX, SPF,
  DKIM, DMARC, MTA-STS, TLS-RPT, TLSA

Checks:

- `check`: what `relay check` finds: files, permissions, routes, DNS ...
- `check_listeners`: what it finds about addresses where Relay listens, and certificates
- `check_network`: whether an address is free to listen on, the milters answer, the name servers
  validate DNSSEC, MX records lead back to this host; whether SMTP sessions have a separate process;
  limits of all nodes together; a result: ok, warning, fault, failed

Copies and repairs:

- `backup`: `relay backup`: what is copied, in which order
- `restore`: `relay restore`: which backups are complete, where it may restore to, what is held then
- `logged_mail`: what the log has of mail: which was accepted, what became of each recipient
- `storage`: `relay storage verify` and `backup`: what is checked and copied; `adopt`: another mail
  root becomes that of the spool

Elsewhere: what verify checks: `verify` of the spool's engine in `relay/store/spool`; what a queue
command does to an entry: `relay/store/spool/shared/decisions.py`.
"""
