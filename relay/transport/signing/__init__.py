"""Sign outgoing mail with DKIM (RFC 6376), before it is committed.

- `signer`: which messages are signed, for which domain (the domain in From)
- `keys`: which key signs for a domain, also for those below it, and until which day (`until`)
- `key_files`: reads the keys of all [[dkim]] entries; faults of entries
- `private_keys`: RSA and Ed25519 keys: their lengths, PEM, new keys, the signature itself
- `signature`: the DKIM-Signature field: which header fields it covers, its tags, its lines; relaxed
  and simple form of header and body, and the body hash (bh=)
- `record`: the DNS record of a key: its text, and what is wrong with a published one

Elsewhere: what `relay dkim` makes and shows: `relay/operation/commands/dkim.py`; warnings of keys
that end: `relay/operation/app/maintenance.py`.
"""
