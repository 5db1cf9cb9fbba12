"""The base of all wings: the values of mail, settings, accounts, the log; time, files, sockets.

Input: relay.toml, accounts.toml and texts from the network. Output: values, log lines, metrics,
files and open sockets. None of the seven steps of a message is here.

- `message`: values: addresses, envelopes, outcomes, states of recipients, next hops
- `settings`: relay.toml and the environment, read, checked, and what a reload may change
- `accounts`: accounts, passwords, client keys, scopes, rights to send as, aliases
- `observe`: the log, metrics, and their samples over time
- `running_relay`: what commands and kits send to a running relay: control socket, sendMail, SMTP
- `clock`: wall time, timers and queue time, which does not jump; ids; how a start continues it
- `advanceable_clock`: a clock that `relay dev` and the test kit advance by days
- `files`: octets in files: read them in blocks, write them, sync them; directories under a lock
- `blocks`: which blocks of bodies are read and written on the event loop, and which in a thread
- `socket_address`: where a socket listens or connects to; the sockets of the service manager
- `sockets`: opens the sockets of listeners
- `certificates`: load and check a certificate and its key, and replace them while sessions continue
- `pressure`: at which load of disk, memory and queue mail is slowed down or refused
- `child_process`: starts a process of this program that answers requests, asks it, and ends it
- `child_main`: the main of such a process: its limits, the sandbox, one answer after the other
- `process_limits`: how much free memory malloc and the garbage collector keep; limits of memory and
  CPU time of a child process
- `sandbox`: what the kernel refuses to a process that reads what strangers send
- `pauses`: whether an operator has paused delivery or acceptance on this node, and until when
- `crashpoints`: the points at which a crash test kills the process
- `round_robin`: a queue that is fair among keys
- `shares`: bounds that all share, and how much one account or client may have; what they refused
- `turns`: places for which accounts and clients wait, each in its turn
- `bounded_dict`: a dictionary that forgets its oldest entry
- `sliding_window`: how much is counted in a period; what a message reserves until it is accepted
- `task_set`: background tasks: kept until they end, cancelled, awaited
- `phrases`: how values and numbers are written in messages to people
"""
