"""How a relay is built, started, stopped, checked and commanded. No message passes through here.

In: relay.toml, accounts.toml, rules, signals, the arguments of a command line. Out: a running
relay, or the printed answer of a verb, with an exit code of sysexits(3).

- `app`: puts the rooms together: start, stop, reload, maintenance, /readyz, the state directory
- `commands`: what verbs do: check, backup, restore, verify, adopt, import, accounts, DNS, DKIM,
  rules
- `cli`: the command: options, verbs, what is printed, exit codes

Elsewhere: the verbs dev, clock and reset: `relay/development/verbs`; what a queue command does:
`relay/store/spool`; the HTTP API that most verbs ask: `relay/front_door/api`.
"""
