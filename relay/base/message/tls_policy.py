"""The TLS policy of a host: whether TLS must be used, and which certificates are accepted.

RouteTable.options_for() returns the policy of a next hop, from its route and [delivery];
decide_tls() derives the policy of each host. Sites and connections are shared only under equal
policies.
RFC 7435 (opportunistic), RFC 8314 (implicit TLS), RFC 9525 (names), RFC 8689 (REQUIRETLS).
"""

from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.mta_sts import NO_STS, StsFinding

TlsLevel = Literal["none", "opportunistic", "required", "verify", "dane"]
# What a message requires: REQUIRETLS; REQUIRETLS in a report, which is sent in any case (RFC 8689
# 5); or the field TLS-Required: No. "" is ordinary mail.
TlsDemand = Literal["", "requiretls", "requiretls if offered", "optional"]
REQUIRETLS: Literal["requiretls"] = "requiretls"  # also a value of TlsDecision.by
IF_OFFERED: Literal["requiretls if offered"] = "requiretls if offered"
OPTIONAL: Literal["optional"] = "optional"
NEEDED = "5.7.30"  # REQUIRETLS support required (RFC 8689 4.2.1)
CONFIGURATION = "configuration"  # what requires the level if no route names one
MTA_STS = "mta-sts"  # what requires "verify"
DANE = "dane"  # what requires "dane"
USUAL_POLICY = f"{CONFIGURATION}: opportunistic"  # of an attempt; it is not recorded
OVERRIDDEN = "policy overridden by route"
_LAX = ("none", "opportunistic")
_NAMED = ("verify", "dane")


class TlsaRecord(Struct, frozen=True, order=True):
    """A TLSA record (RFC 6698 2.1)."""

    usage: int
    selector: int  # 0: the certificate, 1: its key
    matching: int  # `data` is 0: the selected octets, 1: their SHA-256, 2: their SHA-512
    data: bytes


class TlsPolicy(Struct, frozen=True):
    """The TLS that a host must have.

    "verify" trusts the system's store, or only the file `ca`, and requires one of `names` in the
    certificate. "dane" requires that one of `tlsa` matches; without records any certificate is
    accepted. The other levels accept any certificate.
    """

    level: TlsLevel = "opportunistic"  # what is required of TLS and of the certificate
    implicit: bool = False  # TLS from the first byte
    ca: Path | None = None  # None: the system's store
    names: tuple[str, ...] = ()  # (): the host's own
    ca_digest: str = ""  # of the file `ca`, so that another content is another policy
    testing: bool = False  # "verify" is tried first, and its failure is only recorded
    tlsa: tuple[TlsaRecord, ...] = ()  # usable_records()
    requiretls: bool = False  # the host must offer it (RFC 8689)

    def for_host(self, name: str) -> "TlsPolicy":
        """Return the policy for one host of the next hop, with the names to compare."""
        return replace(self, names=(self.names or (name,)) if self.level in _NAMED else ())


class TlsaFinding(Struct, frozen=True):
    """What the DNS has about the certificates of a host."""

    published: int = 0  # records, also those that cannot be used
    usable: tuple[TlsaRecord, ...] = ()
    # the owner of the records (the host or its CNAME target), then the names of the next hop
    names: tuple[str, ...] = ()
    trouble: str = ""  # why it is not known whether there are records
    is_known: bool = False  # the host is certain: configured, or in a validated MX answer

    def of(self, domains: tuple[str, ...]) -> "TlsaFinding":
        """Return the finding for a next hop; `domains` are those of its names that are certain."""
        names = tuple(dict.fromkeys((*self.names, *domains)))
        return replace(self, names=names, is_known=bool(domains))


NO_TLSA = TlsaFinding()


class TlsDecision(Struct, frozen=True):
    """The TLS policy of one host, and what requires it.

    `policy` is part of the keys of sites and connections. `by`, what requires the policy, is not:
    one connection serves all mail with the same policy.
    """

    policy: TlsPolicy
    by: str = CONFIGURATION  # or "route NAME", DANE, MTA_STS or REQUIRETLS
    note: str = ""  # further text for the record of an attempt
    skipped: str = ""  # why the host must not be used
    # DANE, and no forged DNS answer can have led to this host
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
    """Return the TLS policy of the host `name`. Delivery and `explain` use only this decision.

    `policy` is that of the next hop; `by` is what requires it: a route that names the level, or the
    configuration. TLS from the first byte is at least "required"; so is opportunistic TLS if a
    login is sent to another machine.

    If a route names the level, it alone decides. Otherwise (`by` is CONFIGURATION) MTA-STS and the
    DNS can raise the level, but never lower it. Usable TLSA records take precedence over MTA-STS
    (RFC 8461 2). If the MX answer may be forged, a host that the MTA-STS policy does not list is
    refused even if it has TLSA records.

    `demand` of the message is applied last. `vouched`: for REQUIRETLS, a verified name from the
    configuration is enough.
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
    """Return the decision after TLSA records and MTA-STS."""
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
    """Return the decision for a host that has TLSA records, or must have them (level "dane")."""
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
    """Return the decision for a host whose domain has or had an MTA-STS record (RFC 8461 5)."""
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
    """Return the decision for mail with REQUIRETLS, which also applies to hosts of routes.

    The host is skipped unless the name in its certificate is certain (RFC 8689 4.2.1).
    """
    if decision.skipped:
        return decision
    is_verified = decision.policy.level == "verify" or decision.policy.tlsa
    if not decision.proof and not (vouched and is_verified):
        return replace(decision, by=REQUIRETLS, skipped="REQUIRETLS: nothing vouches for its name")
    note = f"by {decision.by}" if decision.by in (DANE, MTA_STS) else ""
    return TlsDecision(replace(decision.policy, requiretls=True), REQUIRETLS, note)


def _without_published(decision: TlsDecision, published: TlsDecision) -> TlsDecision:
    """Return the decision for mail with TLS-Required: No (RFC 8689 4.2.2)."""
    is_same = published.policy == decision.policy and not published.skipped
    if is_same or decision.by != CONFIGURATION:
        return published
    return replace(decision, note="TLS-Required: No")
