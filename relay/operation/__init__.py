"""How a relay runs: put together, started, stopped, checked and commanded. It is no step of mail.

In: relay.toml, accounts.toml, rules, signals, the words of a command line. Out: a running relay, or
an answer of one, printed, with an exit code of sysexits(3).

- `app`: puts the rooms together: start, stop, reload, maintenance, /readyz, the state directory
- `commands`: what verbs do: check, backup, restore, verify, adopt, import, accounts, DNS, DKIM,
  rules
- `cli`: the command: options, verbs, what is printed, exit codes

Elsewhere: the verbs dev, clock and reset: `relay/development/verbs`; what a queue command does:
`relay/store/spool`; the HTTP API that most verbs ask: `relay/front_door/api`.
"""
