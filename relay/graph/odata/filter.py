"""What an expression means for a resource: names become its properties, literals their values.

On the path: messages and folders each say what they have as a Resource; an expression goes in, what
their properties' functions make comes out (a condition for messages, a predicate for folders).
Holds: a property is compared with values of its own type only; null is never greater or less.
Fails: ApiError 400: BadRequest for what makes no sense, ErrorInvalidUrlQueryFilter for a property
that exists and cannot be asked for.
Standards: OData 4.01 URL conventions 5.1.1; names of properties and functions in any case.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from relay.graph.odata.expression import (
    And,
    Call,
    Comparison,
    Expression,
    Lambda,
    Literal,
    Not,
    Or,
    Path,
    Token,
    clause_fault,
)
from relay.http.errors import ApiError, shown
from relay.mailbox.query import Operator

Tree = TypeVar("Tree")
Value = str | int | bool

_SECOND_US = 1_000_000
_TEXT_FUNCTIONS = (Operator.STARTS_WITH, Operator.ENDS_WITH, Operator.CONTAINS)
_CASE_FUNCTIONS = ("tolower", "toupper")  # texts are compared without regard to case anyway
_MIRRORED = {
    Operator.GT: Operator.LT,
    Operator.GE: Operator.LE,
    Operator.LT: Operator.GT,
    Operator.LE: Operator.GE,
}


class Type(Enum):
    """What a property's values are; the value says how they are written."""

    TEXT = "a text in single quotes"
    TIME = "a time without quotes, such as 2026-11-20T06:48:40Z"
    BOOLEAN = "true or false"
    NUMBER = "a number"
    CHOICE = "one of"


@dataclass(frozen=True, slots=True)
class Field(Generic[Tree]):
    """A property that can be asked for, under `name`; `compare` says what comes out.

    A CHOICE has `choices`, the least first where they have an order.
    """

    name: str
    type: Type
    compare: Callable[[Operator, Value], Tree]
    choices: tuple[str, ...] = ()
    has_order: bool = True


@dataclass(frozen=True, slots=True)
class Items(Generic[Tree]):
    """A property that is a list: what its items have ("" is the item itself), and any()."""

    fields: Mapping[str, Field[Tree]]
    any_of: Callable[[Tree], Tree]


@dataclass(frozen=True, slots=True)
class Resource(Generic[Tree]):
    """What can be asked of a resource; all names in lower case.

    `known` are the names of properties that exist; of those that cannot be asked for, `hints` may
    say what to do instead.
    """

    type_name: str
    fields: Mapping[str, Field[Tree]]
    all_of: Callable[[tuple[Tree, ...]], Tree]
    one_of: Callable[[tuple[Tree, ...]], Tree]
    negated: Callable[[Tree], Tree]
    items: Mapping[str, Items[Tree]] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    hints: Mapping[str, str] = field(default_factory=dict)


def resolve(expression: Expression, resource: Resource[Tree]) -> Tree:
    """Return what a $filter means. Raises ApiError 400."""
    return _Resolver(resource, None).tree(expression)


@dataclass(frozen=True, slots=True)
class _Scope(Generic[Tree]):
    """Inside of a lambda: the variable, and what it stands for."""

    variable: str
    items: Items[Tree]


class _Resolver(Generic[Tree]):
    def __init__(self, resource: Resource[Tree], scope: _Scope[Tree] | None) -> None:
        self._resource = resource
        self._scope = scope

    def tree(self, expression: Expression) -> Tree:
        """Return what an expression that is true or false means."""
        match expression:
            case And(parts):
                return self._resource.all_of(tuple(self.tree(part) for part in parts))
            case Or(parts):
                return self._resource.one_of(tuple(self.tree(part) for part in parts))
            case Not(part):
                return self._resource.negated(self.tree(part))
            case Comparison():
                return self._comparison(expression)
            case Call():
                return self._call(expression)
            case Lambda():
                return self._lambda(expression)
            case Path(token):
                asked = self._field(token)
                if asked.type is not Type.BOOLEAN:
                    raise _wrong(
                        token, "a comparison: this property is not true or false by itself"
                    )
                return asked.compare(Operator.EQ, True)
            case Literal(token, value):
                if not isinstance(value, bool):
                    raise _wrong(token, "a comparison or a function that is true or false")
                return self._always() if value else self._never()

    def _comparison(self, comparison: Comparison) -> Tree:
        operator = Operator(comparison.operator.word)
        left, right = _plain(comparison.left), _plain(comparison.right)
        if isinstance(left, Literal) and not isinstance(right, Literal):
            left, right = right, left
            operator = _MIRRORED.get(operator, operator)
        if not isinstance(right, Literal):
            raise _wrong(_first_token(right), "a value")
        if isinstance(left, Literal):
            raise _wrong(left.token, "a property or a function on one side of the comparison")
        if not isinstance(left, Path):
            return self._truth(self.tree(left), operator, right)
        asked = self._field(left.token)
        if asked.type is not Type.TEXT:
            _refuse_case_functions(comparison, asked)
        if asked.type is Type.BOOLEAN or (asked.type is Type.CHOICE and not asked.has_order):
            _only_equality(comparison.operator, operator)
        if right.value is None:
            return self._null(asked, operator)
        value = _value(asked, right)
        if asked.type is Type.TIME and isinstance(value, int):
            return self._time(asked, operator, value)
        return asked.compare(operator, value)

    def _truth(self, tree: Tree, operator: Operator, literal: Literal) -> Tree:
        """Compare what is true or false by itself, as in contains(…) eq false."""
        if not isinstance(literal.value, bool) or operator not in (Operator.EQ, Operator.NE):
            raise _wrong(literal.token, "eq or ne, and true or false")
        is_wanted = literal.value is (operator is Operator.EQ)
        return tree if is_wanted else self._resource.negated(tree)

    def _null(self, asked: Field[Tree], operator: Operator) -> Tree:
        """A text that is not there is an empty one; all else is always there."""
        if operator not in (Operator.EQ, Operator.NE):
            return self._never()
        if asked.type is Type.TEXT:
            return asked.compare(operator, "")
        return self._always() if operator is Operator.NE else self._never()

    def _time(self, asked: Field[Tree], operator: Operator, time_us: int) -> Tree:
        """Times are shown to the second, so what is equal to a whole second is all of it."""
        if operator not in (Operator.EQ, Operator.NE) or time_us % _SECOND_US:
            return asked.compare(operator, time_us)
        within = self._resource.all_of(
            (
                asked.compare(Operator.GE, time_us),
                asked.compare(Operator.LT, time_us + _SECOND_US),
            )
        )
        return within if operator is Operator.EQ else self._resource.negated(within)

    def _call(self, call: Call) -> Tree:
        if call.name not in _TEXT_FUNCTIONS:
            hint = " (contains(property,'text') is what substringof was)"
            expected = ", ".join((*_TEXT_FUNCTIONS, *_CASE_FUNCTIONS))
            raise _wrong(call.token, expected + (hint if call.name == "substringof" else ""))
        if len(call.arguments) != 2:
            raise _wrong(call.token, f"{call.name}(property,'text')")
        subject, literal = map(_plain, call.arguments)
        if not isinstance(subject, Path):
            raise _wrong(_first_token(subject), "a property")
        asked = self._field(subject.token)
        if asked.type is not Type.TEXT:
            raise _wrong(subject.token, f"a property that is a text, as {call.name} wants one")
        if not isinstance(literal, Literal):
            raise _wrong(_first_token(literal), Type.TEXT.value)
        return asked.compare(Operator(call.name), _value(asked, literal))

    def _lambda(self, expression: Lambda) -> Tree:
        if self._scope is not None:
            raise _wrong(expression.token, f"a property of '{self._scope.variable}'")
        items = self._resource.items.get(expression.path.lower())
        if items is None:
            raise self._no_such(expression.token, expression.path)
        if expression.body is None:
            return items.any_of(self._always())
        inner = _Resolver(self._resource, _Scope(expression.variable, items))
        tree = inner.tree(expression.body)
        if expression.is_all:  # no item for which it does not hold
            return self._resource.negated(items.any_of(self._resource.negated(tree)))
        return items.any_of(tree)

    def _field(self, token: Token) -> Field[Tree]:
        """Return the property of a name. Raises ApiError 400."""
        if self._scope is None:
            if found := self._resource.fields.get(token.text.lower()):
                return found
            raise self._no_such(token, token.text)
        variable, _, rest = token.text.partition("/")
        if variable == self._scope.variable and rest.lower() in self._scope.items.fields:
            return self._scope.items.fields[rest.lower()]
        fields = self._scope.items.fields.values()
        names = (f"{self._scope.variable}/{one.name}".rstrip("/") for one in fields)
        raise _wrong(token, " or ".join(names))

    def _no_such(self, token: Token, name: str) -> ApiError:
        place = f"position {token.position}"
        first = name.partition("/")[0].lower()
        if first not in self._resource.known:
            message = f"Could not find a property named {shown(name)} on type"
            return clause_fault("filter", f"{place}: {message} '{self._resource.type_name}'")
        reason = f"the property {shown(name)} cannot be asked for"
        fields = self._resource.fields.items()
        below = [one.name for path, one in fields if path.startswith(f"{first}/")]
        if name.lower() in self._resource.items:
            reason = f"{shown(name)} is a list; ask for its items by {name}/any(x:x…)"
        elif below:
            reason += f"; expected {' or '.join(below)}"
        elif hint := self._resource.hints.get(first):
            reason += f"; {hint}"
        message = f"Invalid filter clause: {place}: {reason}."
        return ApiError(400, "ErrorInvalidUrlQueryFilter", message)

    def _always(self) -> Tree:
        return self._resource.all_of(())

    def _never(self) -> Tree:
        return self._resource.one_of(())


def _plain(expression: Expression) -> Expression:
    """Return what tolower and toupper are given: they change nothing here."""
    if (
        isinstance(expression, Call)
        and expression.name in _CASE_FUNCTIONS
        and len(expression.arguments) == 1
    ):
        return _plain(expression.arguments[0])
    return expression


def _value(asked: Field[Tree], literal: Literal) -> Value:
    """Return a literal as a value of the property's type. Raises ApiError 400."""
    value = literal.value
    match asked.type:
        case Type.TEXT if isinstance(value, str):
            return value
        case Type.BOOLEAN if isinstance(value, bool):
            return value
        case Type.TIME if isinstance(value, int) and literal.is_time:
            return value
        case Type.NUMBER if type(value) is int and not literal.is_time:
            return value
        case Type.CHOICE if isinstance(value, str):
            for choice in asked.choices:
                if choice.lower() == value.lower():
                    return choice
    raise _wrong(literal.token, _expected(asked))


def _expected(asked: Field[Tree]) -> str:
    if asked.type is not Type.CHOICE:
        return str(asked.type.value)
    return "one of " + ", ".join(f"'{choice}'" for choice in asked.choices)


def _refuse_case_functions(comparison: Comparison, asked: Field[Tree]) -> None:
    """Only texts have case: tolower(isRead) makes no sense."""
    for side in (comparison.left, comparison.right):
        if isinstance(side, Call):
            raise _wrong(side.token, f"{_expected(asked)}, or the property by itself")


def _only_equality(token: Token, operator: Operator) -> None:
    if operator not in (Operator.EQ, Operator.NE):
        raise _wrong(token, "eq or ne: the property's values have no order")


def _first_token(expression: Expression) -> Token:
    match expression:
        case Comparison(_, left):
            return _first_token(left)
        case Not(part):
            return _first_token(part)
        case And(parts) | Or(parts):
            return _first_token(parts[0])
        case _:
            return expression.token


def _wrong(token: Token, expected: str) -> ApiError:
    message = f"position {token.position}: found {shown(token.text)}, expected {expected}"
    return clause_fault("filter", message)
