"""The grammar of $filter: a text becomes a tree that knows nothing of any resource.

On the path: messages and folders parse a clause here and resolve what comes out.
Holds: `or` binds weaker than `and`, that weaker than `not`; parentheses keep their grouping; depth
and the number of names and values are bounded.
Fails: ApiError 400 with the position, what was found and what was expected.
Standards: OData 4.01 URL conventions 5.1.1 (operators, precedence, lambda); names in any case.
"""

from dataclasses import dataclass

from relay.graph.odata.tokens import Kind, Token, Tokens, clause_fault, text_of, time_of

DEPTH_MAX = 32
TERMS_MAX = 200
_COMPARISONS = ("eq", "ne", "gt", "ge", "lt", "le")
_CONSTANTS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class Path:
    """A property, as from/emailAddress/address."""

    token: Token


@dataclass(frozen=True, slots=True)
class Literal:
    """A value; a time is one of microseconds, `is_time` then."""

    token: Token
    value: str | int | bool | None
    is_time: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A function; `name` is in lower case."""

    token: Token
    name: str
    arguments: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Lambda:
    """`path/any(variable: body)` or all; any() without a body asks whether there is an item."""

    token: Token
    path: str
    is_all: bool
    variable: str = ""
    body: "Expression | None" = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`left operator right`; `operator` is a word."""

    operator: Token
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, slots=True)
class Not:
    """Not this."""

    part: "Expression"


@dataclass(frozen=True, slots=True)
class And:
    """All of them, two at least."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of them, two at least."""

    parts: tuple["Expression", ...]


Expression = Path | Literal | Call | Lambda | Comparison | Not | And | Or


def parse_expression(text: str, option: str = "filter") -> Expression:
    """Read a clause. Raises ApiError 400."""
    return _Parser(Tokens(text, option), option).clause()


class _Parser:
    """Reads by recursive descent, one method for each level of precedence."""

    def __init__(self, tokens: Tokens, option: str) -> None:
        self._tokens = tokens
        self._option = option
        self._depth = 0
        self._terms = 0

    def clause(self) -> Expression:
        expression = self._either()
        if self._tokens.next.kind is not Kind.END:
            raise self._tokens.fault("'and', 'or' or the end")
        return expression

    def _either(self) -> Expression:
        parts = [self._both()]
        while self._tokens.next.word == "or":
            self._tokens.take()
            parts.append(self._both())
        return Or(tuple(parts)) if len(parts) > 1 else parts[0]

    def _both(self) -> Expression:
        parts = [self._negated()]
        while self._tokens.next.word == "and":
            self._tokens.take()
            parts.append(self._negated())
        return And(tuple(parts)) if len(parts) > 1 else parts[0]

    def _negated(self) -> Expression:
        if self._tokens.next.word != "not":
            return self._compared()
        self._enter()
        self._tokens.take()
        part = self._negated()
        self._depth -= 1
        return Not(part)

    def _compared(self) -> Expression:
        left = self._operand()
        if self._tokens.next.word not in _COMPARISONS:
            if self._tokens.next.kind is Kind.NAME and self._tokens.next.word not in ("and", "or"):
                raise self._tokens.fault(f"one of {', '.join(_COMPARISONS)}, and, or")
            return left
        operator = self._tokens.take()
        return Comparison(operator, left, self._operand())

    def _operand(self) -> Expression:
        token = self._tokens.next
        if self._tokens.is_sign("("):
            return self._grouped()
        if token.kind in (Kind.SIGN, Kind.END):
            raise self._tokens.fault("a property, a function or a value")
        self._count()
        self._tokens.take()
        match token.kind:
            case Kind.TEXT | Kind.TYPED:
                return Literal(token, text_of(token))
            case Kind.NUMBER:
                return Literal(token, int(token.text))
            case Kind.TIME:
                if (time_us := time_of(token)) is None:
                    raise self._tokens.fault("a date and time that exist", token)
                return Literal(token, time_us, is_time=True)
            case _:
                return self._named(token)

    def _named(self, token: Token) -> Expression:
        if self._tokens.is_sign("("):
            path, _, function = token.text.rpartition("/")
            if path and function.lower() in ("any", "all"):
                return self._lambda(token, path, is_all=function.lower() == "all")
            return self._call(token)
        if token.word in _CONSTANTS:
            return Literal(token, _CONSTANTS[token.word])
        return Path(token)

    def _grouped(self) -> Expression:
        self._enter()
        self._tokens.take_sign("(")
        expression = self._either()
        self._tokens.take_sign(")")
        self._depth -= 1
        return expression

    def _call(self, token: Token) -> Expression:
        self._enter()
        self._tokens.take_sign("(")
        arguments: list[Expression] = []
        while not self._tokens.is_sign(")"):
            if arguments:
                self._tokens.take_sign(",")
            arguments.append(self._either())
        self._tokens.take_sign(")")
        self._depth -= 1
        return Call(token, token.word, tuple(arguments))

    def _lambda(self, token: Token, path: str, *, is_all: bool) -> Expression:
        self._enter()
        self._tokens.take_sign("(")
        if self._tokens.is_sign(")") and not is_all:
            self._tokens.take()
            self._depth -= 1
            return Lambda(token, path, is_all)
        variable = self._tokens.next
        if variable.kind is not Kind.NAME or "/" in variable.text:
            raise self._tokens.fault("the name of a variable")
        self._tokens.take()
        self._tokens.take_sign(":")
        body = self._either()
        self._tokens.take_sign(")")
        self._depth -= 1
        return Lambda(token, path, is_all, variable.text, body)

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            message = f"position {self._tokens.next.position}: more than {DEPTH_MAX} levels"
            raise clause_fault(self._option, message)

    def _count(self) -> None:
        self._terms += 1
        if self._terms > TERMS_MAX:
            message = (
                f"position {self._tokens.next.position}: more than {TERMS_MAX} names and values"
            )
            raise clause_fault(self._option, message)
