"""What happens in a world, decided beforehand by its seed: who writes what, how sites are, when it breaks.

Pure: the same seed gives the same scenario.
"""

from dataclasses import dataclass, field, replace
from random import Random

from relay.base.clock import DOUBT_US
from relay.base.message.envelope import Notify
from tests.simulation.network import CERTIFICATES, GOOD
from tests.simulation.sites import BOXED, CROWDED, LAX_FIELD, MANNERS, REFUSING_LOGINS, Manner

PEOPLE = ("alice", "bob", "carol")
HOME = "home.test"
AWAY = "away.test"  # where a trusted sender lives whose reports go out
ROUTED = "d0.test"  # which has a route of its own
GATE = "localhost"  # a host to which a password is sent in clear
GATED = "gated.test"  # whose route leads to the gate, with a login
GATED_HOP = f"smtp://{GATE}:25"
BESIDE = "beside.test"  # whose MX is the gate: without the login
STRICT = "strict.test"  # whose MX are those of STRICT_MX, under MTA-STS policies
STRICT_MX = "d1.test"
CROWD = "crowd.test"  # which many want to write to at once
BOXES = "boxes.test"  # whose route leads to mailboxes by LMTP
BOXES_HOP = f"lmtp://{BOXES}:24"
SERVED_BY = {
    GATED_HOP: GATE,
    BOXES_HOP: BOXES,
    BESIDE: GATE,
    STRICT: STRICT_MX,
}  # whose sites a next hop has
TLSA = (MATCHING, OTHER, FORGED) = ("of the certificate", "of another one", "without AD")
SIGNED = (MATCHING, OTHER)
ALIASES = {  # addresses at HOME that lead to others
    "team": ("alice@home.test", "BOB+team@home.test", "u50@d0.test", "u51@d1.test"),
    "everyone": ("team@home.test", "carol@home.test", "u50@d0.test", "u52@captured.test"),
    "moved": ("u53@d0.test",),
    "desk": ("alice@home.test",),
    "lost": ("nobody@home.test", "u54@d1.test"),
}
SRS_KEY = b"the key of every world"
HELD_S = {"wait": 2400.0, "hush": 7200.0}  # how long rules hold letters with these words
VICTIM = "victim@victim.test"  # whose address strangers write as their own
_RECIPIENTS = (1, 1, 1, 1, 2, 2, 3, 3, 6, 40)
_FUTURES = (Notify.NEVER, Notify.FAILURE, Notify.SUCCESS)
_HOUR_S = 3600.0
_DAY_S = 24 * _HOUR_S
NEVER_S = 1e9
_WINDOW_LEAST, _BURST_S = 3, 60.0
_CROWD_CONNECTIONS, _CROWD_LETTERS = 16, 24  # more connections than a site has at first
_TIMED_HOLDS_S = (100.0, 700.0, 4000.0)


@dataclass(frozen=True)
class Letter:
    """Mail that somebody wants to send; it is tried until it gets an answer for good."""

    number: int
    at_s: float
    via: str  # smtp | stranger | pickup
    reverse_path: str
    recipients: tuple[tuple[str, frozenset[Notify]], ...]
    size_bytes: int
    fields: tuple[str, ...] = ()
    words: str = "hello"
    leaves: bool = False  # the client disconnects after its first final dot
    comes_back_s: float = 0.0  # how long it stays away then, at least


def submission_key(letter: Letter) -> str:
    """What pickup sends as ENVID."""
    return f"draft{letter.number}.1"


@dataclass(frozen=True)
class LifePlan:
    """How one process ends: after so many steps, writes or commits, so many steps after a sync that
    failed, or by a stop after a time (s), that some do not see the end of.
    """

    steps: int = 0
    writes: int = 0
    commits: int = 0
    steps_after_sync: int = 0
    stops_after_s: float = 0.0
    steps_of_stop: int = 0
    power: bool = False
    down_s: float = 5.0  # until the next


@dataclass(frozen=True)
class Trouble:
    """`kind`: full | sync | jump | operator | unreadable | cancel in flight | pause | timed hold |
    held.
    """

    at_s: float
    kind: str
    amount: float = 0.0


@dataclass(frozen=True)
class Full:
    """A mailbox that is full for a time."""

    account: str
    from_s: float
    until_s: float


@dataclass(frozen=True)
class Published:
    """What STRICT publishes from a time on: a policy, or no record where `mode` is "". In trouble
    its name servers ("dns") or its web server ("web") do not answer.
    """

    at_s: float
    id: int
    mode: str
    mx: str
    max_age_s: int
    trouble: str = ""


@dataclass(frozen=True)
class Start:
    """What a process finds when it starts: by how much the wall clock is wrong as long as it lives,
    and whether the machine was restarted.
    """

    wrong_s: float = 0.0
    boots: bool = False


@dataclass(frozen=True)
class Scenario:
    """All of it."""

    seed: int
    letters: tuple[Letter, ...]
    domains: dict[str, tuple[Manner, ...]]
    lives: tuple[LifePlan, ...]
    troubles: tuple[Trouble, ...]
    expire_after_s: float
    retry_s: tuple[float, ...]
    connections_per_site: int
    connections_max: int
    window_claims: int
    sessions_max: int
    store_fails: float
    commit_s: float  # how long a commit may take
    captured_keep_s: float
    indeterminate_max: int
    rate: str  # of a site, as settings have it
    warn_after_s: float  # 0: never
    history_s: float | None  # None: all of it is kept
    walks_anew_s: float  # interval of full queue scans, which find missed entries
    queue_entries: int  # at this number of entries new mail is refused
    route_rate: str  # of the route to ROUTED
    full: tuple["Full", ...] = ()
    unresolved: dict[str, str] = field(default_factory=dict)  # domain: nxdomain | nullmx | servfail
    starts: tuple["Start", ...] = ()  # of each life, and of the last
    gate: Manner | None = None
    submission_keep_s: float = 14 * _DAY_S
    holds: tuple[str, ...] = ()  # domains whose mail a route holds
    published: tuple[Published, ...] = ()  # in worlds with mail to STRICT
    tlsa: str = ""  # records of the hosts of STRICT_MX: one of TLSA
    suppresses: bool = False  # a first reply puts an address on the list of dead addresses

    @property
    def patience_s(self) -> float:
        """When nobody goes on trying to send: a queue that is full may stay so for long."""
        last = max(letter.at_s for letter in self.letters)
        down = sum(life.down_s + life.stops_after_s for life in self.lives)
        return last + down + self.expire_after_s + 2 * _HOUR_S

    @property
    def ends_s(self) -> float:
        """When the last message has to be gone, wherever it lay."""
        doubt_s = DOUBT_US / 1e6 if self.may_doubt else 0.0
        ends_s = self.patience_s + 2 * self.expire_after_s + self.captured_keep_s + 2 * _HOUR_S
        return ends_s + doubt_s

    @property
    def may_doubt(self) -> bool:
        """Whether a start may not know how much time has passed."""
        return any(one.boots for one in self.starts) or any(one.power for one in self.lives)


def make(seed: int) -> Scenario:
    """Return the scenario of `seed`."""
    rng = Random(f"scenario {seed}")
    names = [f"d{number}.test" for number in range(rng.randint(2, 6))]
    domains = {name: _hosts(rng) for name in names}
    walks_anew_s = rng.choice((60.0, 60.0, NEVER_S))
    if walks_anew_s < NEVER_S and rng.random() < 0.5:
        names.append("captured.test")  # only such a walk finds that their time is over
    domains[AWAY] = _hosts(rng)
    domains["victim.test"] = (Manner(),)
    unresolved = {}
    if rng.random() < 0.5:
        unresolved["gone.test"] = rng.choice(("nxdomain", "nullmx", "servfail", "flickering"))
        names.append("gone.test")
    spread_s = rng.choice((_BURST_S, 600.0, 2 * _HOUR_S))
    letters = [
        _letter(rng, number, names, spread_s=spread_s) for number in range(rng.randint(4, 24))
    ]
    expire_after_s = rng.choice((1800.0, 2 * _HOUR_S, 5 * _HOUR_S))
    lives = tuple(_life(rng) for _ in range(rng.choice((0, 1, 2, 3, 3))))
    plan = Scenario(
        seed=seed,
        letters=tuple(letters),
        domains=domains,
        lives=lives,
        troubles=tuple(sorted(_troubles(rng, spread_s), key=lambda one: one.at_s)),
        expire_after_s=expire_after_s,
        retry_s=rng.choice(((60.0, 300.0, 900.0), (300.0, 1800.0), (20.0, 40.0, 80.0, 600.0))),
        connections_per_site=rng.choice((1, 2, 4)),
        connections_max=rng.choice((2, 5, 20)),
        window_claims=rng.choice((_WINDOW_LEAST, 8, 50)),
        sessions_max=rng.choice((2, 20)),
        store_fails=rng.choice((0.0, 0.0, 0.3)),
        commit_s=rng.choice((0.0, 0.0, 0.1, 3.0)),
        captured_keep_s=rng.choice((600.0, 2 * _HOUR_S)),
        indeterminate_max=rng.choice((3, 3, 3, 1, 5)),
        rate=rng.choice(("", "", "3/300", "10/600", "40/600")),
        warn_after_s=rng.choice((0.0, 200.0, 1500.0)),
        history_s=rng.choice((None, 60.0, 60.0, 900.0)),
        walks_anew_s=walks_anew_s,
        queue_entries=rng.choice((1_000_000, 1_000_000, 12)),
        full=tuple(_full(rng, spread_s) for _ in range(rng.choice((0, 0, 1, 2)))),
        unresolved=unresolved,
        route_rate=rng.choice(("", "", "3/300", "20/600")),
        starts=_starts(rng, len(lives) + 1),
    )
    # What is drawn from here on leaves most worlds of the seeds as they were.
    letters = _in_versions(rng, plan.letters)
    troubles = sorted((*plan.troubles, *_orders(rng, spread_s)), key=lambda one: one.at_s)
    plan = _with_more(rng, replace(plan, letters=letters, troubles=tuple(troubles)), spread_s)
    plan = _with_crowd(rng, plan) if rng.random() < 1 / 8 else plan
    plan = _with_aliases(Random(f"aliases {seed}"), plan)
    plan = _with_boxes(Random(f"LMTP {seed}"), plan)
    plan = _with_holds(Random(f"holds {seed}"), plan)
    plan = _with_rule_holds(Random(f"holds of rules {seed}"), plan)
    plan = _with_policies(Random(f"policies {seed}"), plan)
    return _with_suppression(Random(f"suppression {seed}"), plan)


def _with_aliases(rng: Random, plan: Scenario) -> Scenario:
    """In some worlds, name aliases: of strangers' letters too, and beside their members."""
    if rng.random() < 0.7:
        return plan
    letters = []
    for one in plan.letters:
        names = rng.sample(sorted(ALIASES), rng.choice((0, 1, 1, 2)))
        futures = frozenset({rng.choice(_FUTURES)}) if rng.random() < 0.5 else frozenset()
        more = tuple((f"{name}@{HOME}", futures) for name in names)
        letters.append(replace(one, recipients=(*one.recipients, *more)))
    return replace(plan, letters=tuple(letters))


def _with_boxes(rng: Random, plan: Scenario) -> Scenario:
    """In some worlds, let some mail go to several mailboxes by LMTP as well."""
    if rng.random() < 0.6:
        return plan
    letters = tuple(
        _to_guests(rng, _to_guests(rng, one, [BOXES] * 3), [BOXES]) for one in plan.letters
    )
    domains = {**plan.domains, BOXES: (rng.choice(BOXED),)}
    return replace(plan, letters=letters, domains=domains)


def _with_holds(rng: Random, plan: Scenario) -> Scenario:
    """In some worlds, let routes hold the mail for some domains, and operators decide on it."""
    if rng.random() < 0.8:
        return plan
    named = {to.partition("@")[2] for one in plan.letters for to, _ in one.recipients}
    places = sorted(named - {HOME, CROWD, "captured.test"} | {AWAY})
    holds = rng.sample(places, min(len(places), rng.choice((1, 2))))
    if plan.gate is not None:  # whose route is renamed between lives
        holds.append(GATED)
    return replace(plan, troubles=_decisions(rng, plan), holds=tuple(sorted({*holds})))


def _with_policies(rng: Random, plan: Scenario) -> Scenario:
    """Where there is mail to STRICT, let it change its mind, and its hosts offer TLS or not."""
    addresses = (to for one in plan.letters for to, _ in one.recipients)
    if not any(one.endswith(f"@{STRICT}") for one in addresses):
        return plan
    usual = rng.choice((GOOD, GOOD, GOOD, *CERTIFICATES, ""))
    is_healthy = rng.random() < 0.7
    hosts = tuple(
        replace(Manner() if is_healthy else one, certificate=rng.choice((usual, usual, GOOD)))
        for one in plan.domains[STRICT_MX]
    )
    last_s = max(one.at_s for one in plan.letters) + min(plan.expire_after_s, _HOUR_S)
    times = sorted(rng.uniform(0, last_s) for _ in range(rng.choice((1, 2, 4))))
    mx = (f"*.{STRICT_MX}",) * 6 + (f"mx0.{STRICT_MX}", "mx.elsewhere.test")
    published = [Published(0.0, 0, rng.choice(("enforce", "enforce", "")), mx[0], 1500)]
    published += [
        Published(
            at_s,
            number,
            rng.choice(("enforce", "enforce", "testing", "none", "")),
            rng.choice(mx),
            rng.choice((400, 1500, 86400)),
            rng.choice(("", "", "dns", "web")),
        )
        for number, at_s in enumerate(times, start=1)
    ]
    letters = tuple(
        replace(one, fields=(*one.fields, LAX_FIELD.decode())) if rng.random() < 0.35 else one
        for one in plan.letters
    )
    domains = {**plan.domains, STRICT_MX: hosts}
    tlsa = rng.choice(("", "", *TLSA))
    return replace(plan, letters=letters, domains=domains, published=tuple(published), tlsa=tlsa)


def _with_suppression(rng: Random, plan: Scenario) -> Scenario:
    """In some worlds, keep a list of dead addresses, and write to few, of which some are dead."""
    if rng.random() < 0.9:
        return plan
    letters = tuple(
        replace(one, recipients=tuple({_one_of_few(to): how for to, how in one.recipients}.items()))
        for one in plan.letters
    )
    domains = {**plan.domains, ROUTED: (Manner("rejecting some", rejects=0.4),)}
    return replace(plan, letters=letters, domains=domains, suppresses=True)


def _one_of_few(address: str) -> str:
    name, _, domain = address.partition("@")
    return f"{name[0]}{int(name[1:]) % 5}@{domain}" if name[1:].isdigit() else address


def _decisions(rng: Random, plan: Scenario) -> tuple[Trouble, ...]:
    """The troubles, with those of operators who decide on what is held."""
    last_s = max(one.at_s for one in plan.letters)
    decisions = [
        Trouble(rng.uniform(0, last_s + _HOUR_S), "held") for _ in range(rng.choice((0, 3, 8)))
    ]
    return tuple(sorted((*plan.troubles, *decisions), key=lambda one: one.at_s))


def _is_captured(letter: Letter) -> bool:
    return any(address.endswith("@captured.test") for address, _ in letter.recipients)


def _with_rule_holds(rng: Random, plan: Scenario) -> Scenario:
    """In some worlds, let rules hold some of the mail, and operators decide on it."""
    if rng.random() < 0.8:
        return plan
    letters = tuple(
        replace(one, words=rng.choice(sorted(HELD_S)))
        if one.words == "hello" and not _is_captured(one) and rng.random() < 0.5
        else one
        for one in plan.letters
    )
    return replace(plan, letters=letters, troubles=_decisions(rng, plan))


def _with_crowd(rng: Random, plan: Scenario) -> Scenario:
    """Let much mail go to one host at once, which is slow for some of it and may have many
    connections.
    """
    first = len(plan.letters)
    at_s = rng.uniform(0, _BURST_S)
    crowd = tuple(
        Letter(
            first + number,
            at_s + rng.uniform(0, 10),
            "smtp",
            f"{rng.choice(PEOPLE)}@{HOME}",
            ((f"u{rng.randrange(100)}@{CROWD}", frozenset()),),
            100,
        )
        for number in range(_CROWD_LETTERS)
    )
    return replace(
        plan,
        letters=(*plan.letters, *crowd),
        domains={**plan.domains, CROWD: (rng.choice(CROWDED),)},
        connections_per_site=_CROWD_CONNECTIONS,
        connections_max=40,
        window_claims=50,
    )


def _with_more(rng: Random, plan: Scenario, spread_s: float) -> Scenario:
    """In some worlds, let next hops share hosts that they may not share connections to, operators
    hold mail for a time, and pickup repeat a submission when its key is old.
    """
    gate = rng.choice((None, None, None, Manner(), REFUSING_LOGINS, rng.choice(MANNERS)))
    guests = [GATED, BESIDE, BESIDE] if gate else []
    guests += rng.choice(((), (), (STRICT, STRICT_MX)))
    holds = [
        Trouble(rng.uniform(0, spread_s), "timed hold", rng.choice(_TIMED_HOLDS_S))
        for _ in range(rng.choice((0, 0, 0, 3)))
    ]
    if plan.window_claims == _WINDOW_LEAST and spread_s <= _BURST_S:  # much waits untried
        holds += [Trouble(rng.uniform(0, spread_s), "pause", 30.0) for _ in range(2)]
    keep_s = rng.choice((*(3 * (plan.submission_keep_s,)), 2 * _HOUR_S))
    return replace(
        plan,
        letters=tuple(
            _come_back_late(rng, _to_guests(rng, one, guests), keep_s) for one in plan.letters
        ),
        troubles=tuple(sorted((*plan.troubles, *holds), key=lambda one: one.at_s)),
        gate=gate,
        submission_keep_s=keep_s,
    )


def _to_guests(rng: Random, letter: Letter, domains: list[str]) -> Letter:
    """Add some recipients at these domains."""
    if letter.via == "stranger" or not domains or rng.random() < 0.4:
        return letter
    more = {f"u{rng.randrange(100)}@{rng.choice(domains)}" for _ in range(rng.choice((1, 2, 3)))}
    more -= {address for address, _ in letter.recipients}
    nobody: frozenset[Notify] = frozenset()
    added = tuple((address, nobody) for address in sorted(more))
    return replace(letter, recipients=(*letter.recipients, *added))


def _come_back_late(rng: Random, letter: Letter, keep_s: float) -> Letter:
    """Where keys are kept for a short time, let some repeats come at the end of it."""
    if letter.via != "pickup" or keep_s > _DAY_S or rng.random() < 0.3:
        return letter
    return replace(letter, leaves=True, comes_back_s=keep_s * rng.uniform(0.6, 0.88))


def _orders(rng: Random, spread_s: float) -> list[Trouble]:
    """Operators of some worlds who wait for their moment."""
    number = rng.choice((0, 0, 0, 4))
    found = [Trouble(rng.uniform(0, spread_s), "cancel in flight") for _ in range(number)]
    hold_s = (30.0, 200.0, 2000.0)
    return found + [
        Trouble(rng.uniform(0, 2 * spread_s), "pause", rng.choice(hold_s)) for _ in range(number)
    ]


def _in_versions(rng: Random, letters: tuple[Letter, ...]) -> tuple[Letter, ...]:
    """In some worlds, let a rule give some recipients of a letter another version of its content."""
    chance = rng.choice((0.0, 0.0, 0.0, 0.5))
    return tuple(
        replace(one, words="version") if one.words == "hello" and rng.random() < chance else one
        for one in letters
    )


def _starts(rng: Random, number: int) -> tuple[Start, ...]:
    if rng.random() < 0.6:
        return (Start(),) * number
    wrong_s = (0.0, 0.0, 400 * _DAY_S, -400 * _DAY_S, 3 * _DAY_S)
    return tuple(Start(rng.choice(wrong_s), rng.random() < 0.3) for _ in range(number))


def _hosts(rng: Random) -> tuple[Manner, ...]:
    return tuple(rng.choice(MANNERS) for _ in range(rng.choice((1, 1, 1, 2, 3))))


def _life(rng: Random) -> LifePlan:
    down_s = rng.choice((1.0, 30.0, 600.0, 3 * _HOUR_S))
    end = rng.random()
    power = rng.random() < 0.3
    if end < 0.1:
        steps = int(10 ** rng.uniform(0, 2.3))
        stops_after_s = rng.uniform(0, 3000)
        return LifePlan(
            stops_after_s=stops_after_s, steps_of_stop=steps, power=power, down_s=down_s
        )
    if end < 0.15:
        return LifePlan(steps_after_sync=rng.randint(1, 40), power=power, down_s=down_s)
    if end < 0.35:
        return LifePlan(steps=int(10 ** rng.uniform(0.5, 3.7)), down_s=down_s)
    if end < 0.65:
        commits = rng.randint(1, 120)
        return LifePlan(commits=commits, power=power, down_s=down_s)
    if end < 0.85:
        writes = int(10 ** rng.uniform(0, 2.7))
        return LifePlan(writes=writes, power=rng.random() < 0.5, down_s=down_s)
    return LifePlan(stops_after_s=rng.uniform(0, 3000), down_s=down_s)


def _troubles(rng: Random, spread_s: float) -> list[Trouble]:
    end_s = 2 * spread_s + 3600
    busy = rng.choice((end_s, spread_s, spread_s))
    found = [
        Trouble(rng.uniform(0, busy), "operator") for _ in range(rng.choice((0, 3, 10, 20, 60)))
    ]
    if rng.random() < 0.4:
        found.append(Trouble(rng.uniform(0, busy), "full", rng.choice((30.0, 600.0))))
    if rng.random() < 0.25:
        at_s = rng.uniform(0, spread_s)
        found += [Trouble(rng.uniform(0, spread_s), "sync") for _ in range(rng.randint(1, 4))]
        found += [Trouble(at_s, "sync") for _ in range(rng.choice((0, 2, 4)))]  # one upon the other
    if rng.random() < 0.2:
        found.append(Trouble(rng.uniform(0, spread_s), "unreadable", rng.choice((10.0, 700.0))))
    if rng.random() < 0.3:
        found.append(Trouble(rng.uniform(0, end_s), "jump", rng.choice((-86400.0, 86400.0, 3e6))))
    return found


def _full(rng: Random, spread_s: float) -> Full:
    from_s = rng.uniform(0, spread_s)
    account = f"{rng.choice(PEOPLE)}@{HOME}"
    return Full(account, from_s, from_s + rng.choice((100.0, 2000.0, 20 * _HOUR_S)))


def _letter(rng: Random, number: int, names: list[str], *, spread_s: float) -> Letter:
    via = rng.choice(("smtp", "smtp", "pickup", "pickup", "stranger"))
    at_home = [f"{name}@{HOME}" for name in PEOPLE]
    nobody = [f"nobody{number}@{HOME}"]
    if via == "stranger":
        reverse_path, places = VICTIM, [at_home, at_home, nobody]
    else:
        reverse_path = rng.choice((f"alice@{HOME}", f"bob@{HOME}", f"trusted@{AWAY}", ""))
        domains = [rng.choice(names)] if rng.random() < 0.3 else names  # many to one site
        away = [f"u{rng.randrange(100)}@{rng.choice(domains)}" for _ in range(30)]
        places = [at_home, away, away, away, away, nobody if via == "pickup" else away]
    if via == "pickup":
        reverse_path = f"alice@{HOME}"
    chosen = {rng.choice(rng.choice(places)) for _ in range(rng.choice(_RECIPIENTS))}
    recipients = []
    for address in sorted(chosen):
        notify = rng.choice(_FUTURES) if via == "smtp" and rng.random() < 0.2 else None
        recipients.append((address, frozenset({notify} if notify else ())))
    fields = rng.choice(
        ((), (), (), ("Importance: high",), ("Precedence: bulk",), ("Importance: low",))
    )
    words = rng.choice(("hello",) * 8 + ("forbidden", "vanish", "redirect", "copy"))
    size_bytes = rng.choice((100, 100, 100, 3000, 3000, 60_000))
    if rng.random() < 0.02:
        size_bytes = rng.choice((150_000, 1_200_000))  # in a file, whole or its body
    return Letter(
        number,
        rng.uniform(0, spread_s),
        via,
        reverse_path,
        tuple(recipients),
        size_bytes,
        fields=fields,
        words=words,
        leaves=rng.random() < 0.3,
        comes_back_s=rng.choice((0.0, 1000.0, 4000.0)),
    )
