"""Who really sent a message: SPF (RFC 7208), DKIM (RFC 6376), DMARC (RFC 9989) of strangers.

- `checker`: asks the DNS and the workers; the bounds of time and questions; the results
- `workers`: the worker processes: how many, how long they may take, and what replaces them
- `check_child`: a worker: what a message lacks, or its results
- `spf_check`: SPF by pyspf, for the sender and for HELO
- `dkim_check`: DKIM by dkimpy: which signatures and keys count
- `dmarc`: the author's domain, its policy, and which other domains belong to it
- `field`: the Authentication-Results field of the results

Elsewhere: results of other filters: `relay/base/message/authentication_results.py`.
"""
