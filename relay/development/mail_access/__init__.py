"""IMAP and POP3 of a development relay, by Dovecot's `imap` and `pop3` programs.

Relay does the login; then a child process serves the session on the Maildir of the mailbox. No
daemon of Dovecot runs, and no process starts before a login.

- `server`: accepts connections; how many; ends sessions before a reset
- `session`: one session: failed logins, limits of time; the child process: its environment and
  limits, its end, what it leaves
- `login_dialogue`: reads what a client sends before its login: sizes of lines and literals, HTTP
- `imap_login`: the commands and replies of IMAP before the login
- `pop3_login`: those of POP3
- `dovecot`: where Dovecot's programs are, why they cannot be used, their command; the files
  `dovecot-2.3.conf` and `dovecot-2.4.conf` are their configuration
"""
