"""The composition root: builds all rooms from the settings, starts and stops them.

Building:

- `compose`: builds the daemon from the settings
- `configuration`: reads settings, accounts, rules, texts and keys together; what a reload replaces;
  the route table; what must be equal on all nodes; what the text of `queue reroute --to` means;
  the key of SRS addresses: where it is, and when it is made
- `account_file`: the accounts; the addresses that `from` of an alias stands for
- `tenant_sets`: which rules of tenants are in force; their last good ones in state_dir
- `development_folder`: the directory of a development relay (--dir or temporary), its lock and its
  removal; how the other commands find it
- `state_dir`: the locks of state_dir and mail store, their owner and permissions
- `probes`: what a start and `relay check` ask of the file systems of state_dir and mail root
- `foundation`: opens the mail root and the spool; which mail stays on this machine; SIGHUP and
  `relay reload`: one reload at a time; how its result gets into the log, the metrics and systemd
- `transport`: pickup, SMTP servers, delivery and reports, from the settings; what a reload changes
  in them; whether SMTP sessions have a separate process, and which settings it gets
- `notifications`: subscriptions; which addresses their receivers may have
- `mta_sts`: how the policy file of a domain is fetched; which sessions are counted
- `front_door`: HTTP: Graph, sign-in, /relay/v1, pages, on which listeners; why /readyz is 503

Running:

- `daemon`: order of start and stop, drain, SIGTERM; readiness and signs of life for systemd, the
  ready file
- `pressure_monitor`: measures disk space, memory and queue each second
- `memory`: the memory limit, by control groups; what counts as used; whether it is enough
- `maintenance`: periodic tasks: queue metrics, pruning of history (spool.keep), stale contents,
  expired uploads, ending DKIM keys, whether the mail root belongs to the spool; which answers to
  reports stay in the dead-letter mailbox
- `limit_alerts`: when an operator gets a message that an account is near its limits
- `settling`: when a relay has nothing to do
- `explain`: `relay explain`: where mail for an address would go; it asks the route table, the
  rules, the resolver and the milters

Elsewhere: from which level on mail is refused: `relay/base/pressure.py`; which keys a reload
applies: `relay/base/settings/reloadable_keys.py`; the development relay:
`relay/development/relay.py`.
"""
