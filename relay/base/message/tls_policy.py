"""The TLS policy of a host: whether TLS must be used, and which certificates are accepted.

RouteTable.options_for() has the policy of a next hop, from its route and [delivery]; decide_tls()
makes it that of each host. Sites and connections are shared only under equal policies. See
RFC 7435 (opportunistic), RFC 8314 (implicit TLS), RFC 9525 (names), RFC 8689 (REQUIRETLS).
"""

from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.mta_sts import NO_STS, StsFinding

TlsLevel = Literal["none", "opportunistic", "required", "verify", "dane"]
# What a message demands: REQUIRETLS; that in a report, which is not held back without it (RFC 8689
# 5); or what the field TLS-Required: No says. "" is ordinary mail.
TlsDemand = Literal["", "requiretls", "requiretls if offered", "optional"]
REQUIRETLS: Literal["requiretls"] = "requiretls"  # also who demands a level
IF_OFFERED: Literal["requiretls if offered"] = "requiretls if offered"
OPTIONAL: Literal["optional"] = "optional"
NEEDED = "5.7.30"  # REQUIRETLS support required (RFC 8689 4.2.1)
CONFIGURATION = "configuration"  # who demands a level that no route names
MTA_STS = "mta-sts"  # who demands "verify"
DANE = "dane"  # who demands "dane"
USUAL_POLICY = f"{CONFIGURATION}: opportunistic"  # of an attempt; it is not recorded
OVERRIDDEN = "policy overridden by route"
_LAX = ("none", "opportunistic")
_NAMED = ("verify", "dane")


class TlsaRecord(Struct, frozen=True, order=True):
    """A TLSA record (RFC 6698 2.1)."""

    usage: int
    selector: int  # 0: the certificate, 1: its key
    matching: int  # 0: `data` is what is selected, 1: its SHA-256, 2: its SHA-512
    data: bytes


class TlsPolicy(Struct, frozen=True):
    """The TLS that a host must have.

    "verify" trusts the system's store, or the file `ca` alone, and requires one of `names` in the
    certificate. "dane" requires what one of `tlsa` demands, and nothing of the certificate if there
    are none. The other levels accept any.
    """

    level: TlsLevel = "opportunistic"  # what is demanded of TLS and of the certificate
    implicit: bool = False  # TLS from the first byte
    ca: Path | None = None  # None: the system's store
    names: tuple[str, ...] = ()  # (): the host's own
    ca_digest: str = ""  # tells the content of the file from an earlier one
    testing: bool = False  # "verify" is tried first, and its failure is only noted
    tlsa: tuple[TlsaRecord, ...] = ()  # usable_records()
    requiretls: bool = False  # the host must offer it (RFC 8689)

    def for_host(self, name: str) -> "TlsPolicy":
        """Return the policy for one host of the next hop, with the names that are compared."""
        return replace(self, names=(self.names or (name,)) if self.level in _NAMED else ())


class TlsaFinding(Struct, frozen=True):
    """What the DNS says of the certificates of a host."""

    published: int = 0  # records, also those that cannot be used
    usable: tuple[TlsaRecord, ...] = ()
    # whose records they are: the host, or what it is an alias of; then those of the next hop
    names: tuple[str, ...] = ()
    trouble: str = ""  # why it is not known whether there are any
    is_known: bool = False  # the host: it is configured, or the MX answer was validated

    def of(self, domains: tuple[str, ...]) -> "TlsaFinding":
        """Return it for a next hop whose names lead to the host for certain, if there are any."""
        names = tuple(dict.fromkeys((*self.names, *domains)))
        return replace(self, names=names, is_known=bool(domains))


NO_TLSA = TlsaFinding()


class TlsDecision(Struct, frozen=True):
    """What one host must have. `policy` is part of the keys of sites and connections; who demands
    it, `by`, is not: the same connection serves all who demand the same.
    """

    policy: TlsPolicy
    by: str = CONFIGURATION  # or "route NAME", DANE, MTA_STS or REQUIRETLS
    note: str = ""  # what else an attempt says of it
    skipped: str = ""  # why the host may not be used
    # by DANE, and no forged answer of the DNS can have led to this host
    proof: bool = False


def decide_tls(
    name: str,
    policy: TlsPolicy,
    *,
    by: str = CONFIGURATION,
    has_login: bool = False,
    sts: StsFinding = NO_STS,
    tlsa: TlsaFinding = NO_TLSA,
    demand: TlsDemand = "",
    vouched: bool = False,
) -> TlsDecision:
    """Return what the host `name` must have. Delivery and `explain` ask here, and nothing else
    decides: connect() does what the policy says.

    `policy` is that of the next hop, `by` who demands it: a route that names the level, or the
    configuration. TLS from the first byte is "required" at least; so is opportunistic TLS if a
    login goes to another machine.

    A route decides alone. What a domain or the DNS publishes counts only where `by` is
    CONFIGURATION, and raises the level, never lowers it. TLSA records of a host go before MTA-STS
    (RFC 8461 2), which decides where there are none, or none that can be used. Where the MX answer
    may be forged, they do not make up for a host that the MTA-STS policy does not list.

    The last step is what the message demands. `vouched`: for REQUIRETLS a verified name that the
    configuration has is enough.
    """
    level = policy.level
    if level in _LAX and (policy.implicit or (has_login and level == "opportunistic")):
        policy = replace(policy, level="required")
    configured = TlsDecision(policy.for_host(name), CONFIGURATION if demand == REQUIRETLS else by)
    published = _with_published(name, configured, sts, tlsa=tlsa)
    if demand == REQUIRETLS:
        return _strict(published, vouched=vouched or sts.enforces(name))
    return published if demand != OPTIONAL else _without_published(configured, published)


def _with_published(
    name: str, decision: TlsDecision, sts: StsFinding, *, tlsa: TlsaFinding
) -> TlsDecision:
    """Return what a host must have by what the DNS has of it, and its domain publishes."""
    by_sts = decision if sts is NO_STS else _with_sts(name, decision, sts)
    must = decision.policy.level == "dane"
    if not must and tlsa is NO_TLSA:  # nearly always
        return by_sts
    by_tlsa = _with_tlsa(decision, tlsa)
    if must or by_tlsa.skipped or by_tlsa.proof:
        return by_tlsa
    if by_tlsa.by != DANE:
        return replace(by_sts, note=by_sts.note or by_tlsa.note)
    is_less = by_sts.skipped or (by_sts.by == MTA_STS and not tlsa.usable)
    return by_sts if is_less else by_tlsa


def _with_tlsa(decision: TlsDecision, tlsa: TlsaFinding) -> TlsDecision:
    """Return what a host must have for which the DNS has TLSA records, or that must have some."""
    must = decision.policy.level == "dane"
    if decision.by != CONFIGURATION and not must:
        return replace(decision, note=OVERRIDDEN) if tlsa.published else decision
    if tlsa.trouble:  # RFC 7672 2.1.2: TLSA records may be there
        return replace(decision, skipped=tlsa.trouble)
    if must and not tlsa.usable:
        return replace(decision, skipped="it has no TLSA record that can be used")
    if must and not tlsa.is_known:
        return replace(decision, skipped="the MX answer of the domain was not validated")
    if not tlsa.published:
        return decision
    if not tlsa.usable:  # RFC 7672 2.2
        return TlsDecision(TlsPolicy("dane"), DANE, "no TLSA record can be used")
    has_authority = any(record.usage == 2 for record in tlsa.usable)
    names = tlsa.names if has_authority else tlsa.names[:1]  # RFC 7672 3.2.2
    policy = replace(decision.policy, level="dane", tlsa=tlsa.usable, names=names)
    note = "" if tlsa.is_known else "MX answer not validated"
    return TlsDecision(policy, decision.by if must else DANE, note, proof=tlsa.is_known)


def _with_sts(name: str, decision: TlsDecision, sts: StsFinding) -> TlsDecision:
    """Return what a host must have whose domain has an MTA-STS record, or had one (RFC 8461 5)."""
    mode = sts.policy.mode if sts.policy is not None else ""
    if decision.by != CONFIGURATION:
        return decision if mode == "none" else replace(decision, note=OVERRIDDEN)
    if sts.policy is None or mode == "none":
        note = f"mta-sts policy not fetched ({sts.trouble})" if sts.trouble else ""
        return replace(decision, note=note)
    is_listed = sts.policy.lists(name)
    if mode == "testing":
        policy = replace(decision.policy, testing=decision.policy.level != "none")
        note = "mta-sts testing" if is_listed else "mta-sts testing: the host is not in the policy"
        return replace(decision, policy=policy, note=note)
    if not is_listed:
        return replace(decision, skipped="not in the MTA-STS policy of the domain")
    return TlsDecision(TlsPolicy("verify").for_host(name), MTA_STS)


def _strict(decision: TlsDecision, *, vouched: bool) -> TlsDecision:
    """Return what a host must have for mail with REQUIRETLS, whatever a route says: it is skipped
    unless it is certain which name its certificate must have (RFC 8689 4.2.1).
    """
    if decision.skipped:
        return decision
    is_verified = decision.policy.level == "verify" or decision.policy.tlsa
    if not decision.proof and not (vouched and is_verified):
        return replace(decision, by=REQUIRETLS, skipped="REQUIRETLS: nothing vouches for its name")
    note = f"by {decision.by}" if decision.by in (DANE, MTA_STS) else ""
    return TlsDecision(replace(decision.policy, requiretls=True), REQUIRETLS, note)


def _without_published(decision: TlsDecision, published: TlsDecision) -> TlsDecision:
    """Return what a host must have for mail with TLS-Required: No (RFC 8689 4.2.2)."""
    is_same = published.policy == decision.policy and not published.skipped
    if is_same or decision.by != CONFIGURATION:
        return published
    return replace(decision, note="TLS-Required: No")
