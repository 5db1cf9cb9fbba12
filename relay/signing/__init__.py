"""Sign outgoing mail with DKIM (RFC 6376), before it is committed.

canonical and signature are pure: the octets that a signature covers, and the field itself. keys has
the private keys of relay.toml and what they are worth at a moment; key_files reads them; record has
the DNS record of a key. signer decides who signs a message, and signs it.
"""
