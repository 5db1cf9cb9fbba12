"""Bind a $filter expression to a resource: names become its properties, literals their values.

A property is compared only with values of its own type; null is never greater or less. Names match
in any case. BadRequest is the error for an invalid clause, ErrorInvalidUrlQueryFilter for a
property that exists and cannot be filtered by. OData 4.01 URL conventions 5.1.1.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from relay.base.message.extended_properties import ExtendedPropertyError, canonical_value, time_us
from relay.front_door.graph import errors
from relay.front_door.graph.odata import expression as expressions
from relay.front_door.http.errors import ApiError, quoted
from relay.store.mailbox.query import Operator

Result = TypeVar("Result")
Value = str | int | bool

_SECOND_US = 1_000_000
_TEXT_FUNCTIONS = (Operator.STARTS_WITH, Operator.ENDS_WITH, Operator.CONTAINS)
_CASE_FUNCTIONS = ("tolower", "toupper")  # texts are compared case-insensitively anyway
# cast() names a type, but values are compared in the property's type. OData 4.01 5.1.1.6, .10.
_CASTS = (
    *("Edm.Int32", "Edm.Int64", "Edm.Double", "Edm.Boolean", "Edm.Guid"),
    *("Edm.DateTimeOffset", "Edm.Binary", "Edm.String"),
)
_MIRRORED = {
    Operator.GT: Operator.LT,
    Operator.GE: Operator.LE,
    Operator.LT: Operator.GT,
    Operator.LE: Operator.GE,
}

_OPERATOR_KINDS = {
    Operator.EQ: "Equal",
    Operator.NE: "NotEqual",
    Operator.GT: "GreaterThan",
    Operator.GE: "GreaterThanOrEqual",
    Operator.LT: "LessThan",
    Operator.LE: "LessThanOrEqual",
}
# by the names of TokenKind and of FieldType
_EDM_TYPES = {
    "TEXT": "Edm.String",
    "TYPED": "Edm.String",
    "TIME_TEXT": "Edm.String",
    "BOOLEAN": "Edm.Boolean",
    "NAME": "Edm.Boolean",
    "NUMBER": "Edm.Int32",
    "TIME": "Edm.DateTimeOffset",
}


class FieldType(Enum):
    """The type of a property; the value describes its literals for errors."""

    TEXT = "a text in single quotes"
    TIME = "a time without quotes, such as 2026-11-20T06:48:40Z"
    TIME_TEXT = "a time in single quotes, such as '2026-12-01T00:00:00Z', or null"
    BOOLEAN = "true or false"
    NUMBER = "a number"
    CHOICE = "one of"


@dataclass(frozen=True, slots=True)
class QueryField(Generic[Result]):
    """A property that can be filtered by; `compare` returns the condition.

    A CHOICE has `choices`; if they have an order, it is ascending.
    """

    name: str
    type: FieldType
    compare: Callable[[Operator, Value], Result]
    choices: tuple[str, ...] = ()
    has_order: bool = True
    can_cast: bool = False  # a text that may be the value of another type


@dataclass(frozen=True, slots=True)
class CollectionField(Generic[Result]):
    """A collection property: the fields of its items ("" is the item itself), and any()."""

    fields: Mapping[str, QueryField[Result]]
    any_of: Callable[[Result], Result]
    lists: tuple[str, ...] = ()  # the fields that any() and all() take too


@dataclass(frozen=True, slots=True)
class Resource(Generic[Result]):
    """The properties of a resource that can be filtered by; all names in lower case."""

    kind: str  # Graph's name of its type
    fields: Mapping[str, QueryField[Result]]  # by name: how a property is compared
    all_of: Callable[[tuple[Result, ...]], Result]  # combines conditions by `and`
    one_of: Callable[[tuple[Result, ...]], Result]  # combines conditions by `or`
    negated: Callable[[Result], Result]  # the opposite of a condition
    # by name: the collections that any() and all() take
    items: Mapping[str, CollectionField[Result]] = field(default_factory=dict)
    # all properties that exist, also those that cannot be filtered by
    known: frozenset[str] = frozenset()
    hints: Mapping[str, str] = field(default_factory=dict)  # by name: what to use instead


def bind_filter(expression: expressions.Expression, resource: Resource[Result]) -> Result:
    """Return the condition for a $filter. Raises ApiError 400."""
    return _FilterBinder(resource, None).tree(expression)


@dataclass(frozen=True, slots=True)
class _LambdaScope(Generic[Result]):
    """The variable of a lambda, and the collection that it ranges over."""

    variable: str
    items: CollectionField[Result]


class _FilterBinder(Generic[Result]):
    def __init__(self, resource: Resource[Result], scope: _LambdaScope[Result] | None) -> None:
        self._resource = resource
        self._scope = scope

    def tree(self, expression: expressions.Expression) -> Result:
        """Return the condition for a boolean expression."""
        match expression:
            case expressions.And(parts):
                return self._resource.all_of(tuple(self.tree(part) for part in parts))
            case expressions.Or(parts):
                return self._resource.one_of(tuple(self.tree(part) for part in parts))
            case expressions.Not(part):
                return self._resource.negated(self.tree(part))
            case expressions.Comparison():
                return self._comparison(expression)
            case expressions.FunctionCall():
                return self._call(expression)
            case expressions.Lambda():
                return self._lambda(expression)
            case expressions.Path(token):
                field = self._field(token)
                if field.type is not FieldType.BOOLEAN:
                    raise _error(
                        token, "a comparison: this property is not true or false by itself"
                    )
                return field.compare(Operator.EQ, True)
            case expressions.Literal(token, value):
                if not isinstance(value, bool):
                    raise _error(token, "a comparison or a function that is true or false")
                return self._always() if value else self._never()

    def _comparison(self, comparison: expressions.Comparison) -> Result:
        operator = Operator(comparison.operator.word)
        left, right = map(_without_case_functions, (comparison.left, comparison.right))
        if isinstance(left, expressions.Literal) and not isinstance(right, expressions.Literal):
            left, right = right, left
            operator = _MIRRORED.get(operator, operator)
        if not isinstance(right, expressions.Literal):
            raise _error(_first_token(right), "a value")
        if isinstance(left, expressions.Literal):
            raise _error(left.token, "a property or a function on one side of the comparison")
        left, is_cast = self._without_cast(left)
        if not isinstance(left, expressions.Path):
            return self._boolean_comparison(self.tree(left), operator, right)
        field = self._field(left.token)
        if field.type is not FieldType.TEXT:
            _reject_case_functions(comparison, field)
        if field.type is FieldType.BOOLEAN or (
            field.type is FieldType.CHOICE and not field.has_order
        ):
            _require_equality(comparison.operator, operator)
        if right.value is None:
            return self._null(field, operator)
        if is_cast and not isinstance(right.value, str):  # a blank is the plus sign of a zone
            right = expressions.Literal(right.token, right.token.text.replace(" ", "+"))
        value = _typed_value(field, right, operator)
        if field.type in (FieldType.TIME, FieldType.TIME_TEXT) and isinstance(value, int):
            return self._time(field, operator, value)
        return field.compare(operator, value)

    def _without_cast(
        self, expression: expressions.Expression
    ) -> tuple[expressions.Expression, bool]:
        """Return the argument of a cast(), and whether it is one. Raises ApiError 400."""
        if not isinstance(expression, expressions.FunctionCall) or expression.name != "cast":
            return expression, False
        match expression.arguments:
            case (expressions.Path(token) as path, expressions.Path(kind)) if self._field(
                token
            ).can_cast:
                if kind.text not in _CASTS:
                    raise _error(kind, f"one of {', '.join(_CASTS)}")
                return path, True
        raise _error(expression.token, "cast(ep/value,TYPE) of an extended property's value")

    def _boolean_comparison(
        self, tree: Result, operator: Operator, literal: expressions.Literal
    ) -> Result:
        """Compare a boolean expression with true or false, as in contains(…) eq false."""
        if not isinstance(literal.value, bool) or operator not in (Operator.EQ, Operator.NE):
            raise _error(literal.token, "eq or ne, and true or false")
        is_wanted = literal.value is (operator is Operator.EQ)
        return tree if is_wanted else self._resource.negated(tree)

    def _null(self, field: QueryField[Result], operator: Operator) -> Result:
        """Compare with null: a missing text is an empty one; only times of a flag can be null."""
        if operator not in (Operator.EQ, Operator.NE):
            return self._never()
        if field.type is FieldType.TEXT:
            return field.compare(operator, "")
        if field.type is FieldType.TIME_TEXT:
            exists = field.compare(Operator.GE, 0)
            return exists if operator is Operator.NE else self._resource.negated(exists)
        return self._always() if operator is Operator.NE else self._never()

    def _time(self, field: QueryField[Result], operator: Operator, time_us: int) -> Result:
        """Compare a time. Responses have whole seconds, so eq matches all of a second."""
        if operator not in (Operator.EQ, Operator.NE) or time_us % _SECOND_US:
            return field.compare(operator, time_us)
        within = self._resource.all_of(
            (field.compare(Operator.GE, time_us), field.compare(Operator.LT, time_us + _SECOND_US))
        )
        return within if operator is Operator.EQ else self._resource.negated(within)

    def _call(self, call: expressions.FunctionCall) -> Result:
        if call.name not in _TEXT_FUNCTIONS:
            hint = " (contains(property,'text') is what substringof was)"
            expected = ", ".join((*_TEXT_FUNCTIONS, *_CASE_FUNCTIONS))
            raise _error(call.token, expected + (hint if call.name == "substringof" else ""))
        if len(call.arguments) != 2:
            raise _error(call.token, f"{call.name}(property,'text')")
        subject, literal = map(_without_case_functions, call.arguments)
        subject, _ = self._without_cast(subject)
        if not isinstance(subject, expressions.Path):
            raise _error(_first_token(subject), "a property")
        field = self._field(subject.token)
        if field.type is not FieldType.TEXT:
            raise _error(subject.token, f"a property that is a text, which {call.name} requires")
        if not isinstance(literal, expressions.Literal):
            raise _error(_first_token(literal), FieldType.TEXT.value)
        return field.compare(Operator(call.name), _typed_value(field, literal))

    def _lambda(self, expression: expressions.Lambda) -> Result:
        if self._scope is None:
            items = self._resource.items.get(expression.path.lower())
        else:
            items = self._inner_items(self._scope, expression)
        if items is None:
            raise self._unknown_property(expression.token, expression.path)
        if expression.body is None:
            return items.any_of(self._always())
        inner = _FilterBinder(self._resource, _LambdaScope(expression.variable, items))
        tree = inner.tree(expression.body)
        if expression.is_all:  # all(): there is no item for which the body is false
            return self._resource.negated(items.any_of(self._resource.negated(tree)))
        return items.any_of(tree)

    def _inner_items(
        self, scope: _LambdaScope[Result], expression: expressions.Lambda
    ) -> CollectionField[Result]:
        """Return the values of an item's property that has several values."""
        variable, _, rest = expression.path.partition("/")
        if variable != scope.variable or rest.lower() not in scope.items.lists:
            raise _error(expression.token, f"a property of '{scope.variable}'")
        return CollectionField({"": scope.items.fields[rest.lower()]}, lambda tree: tree)

    def _field(self, token: expressions.Token) -> QueryField[Result]:
        """Return the field with this name. Raises ApiError 400."""
        if self._scope is None:
            if known_field := self._resource.fields.get(token.text.lower()):
                return known_field
            raise self._unknown_property(token, token.text)
        variable, _, rest = token.text.partition("/")
        if variable == self._scope.variable and rest.lower() in self._scope.items.fields:
            return self._scope.items.fields[rest.lower()]
        fields = self._scope.items.fields.values()
        names = (f"{self._scope.variable}/{field.name}".rstrip("/") for field in fields)
        raise _error(token, " or ".join(names))

    def _unknown_property(self, token: expressions.Token, name: str) -> ApiError:
        place = f"position {token.position}"
        first = name.partition("/")[0].lower()
        if first not in self._resource.known:
            detail = f"$filter: found {quoted(name)} at {place}."
            return errors.PROPERTY_UNKNOWN(detail, quoted(name), self._resource.kind)
        reason = f"the property {quoted(name)} cannot be filtered by"
        fields = self._resource.fields.items()
        below = [field.name for path, field in fields if path.startswith(f"{first}/")]
        if name.lower() in self._resource.items:
            reason = f"{quoted(name)} is a collection; filter by its items with {name}/any(x:x…)"
        elif below:
            reason += f"; expected {' or '.join(below)}"
        elif hint := self._resource.hints.get(first):
            reason += f"; {hint}"
        return errors.FILTER_UNSUPPORTED(f"{place}: {reason}.")

    def _always(self) -> Result:
        return self._resource.all_of(())

    def _never(self) -> Result:
        return self._resource.one_of(())


def _without_case_functions(expression: expressions.Expression) -> expressions.Expression:
    """Return the argument of tolower and toupper, which have no effect."""
    if (
        isinstance(expression, expressions.FunctionCall)
        and expression.name in _CASE_FUNCTIONS
        and len(expression.arguments) == 1
    ):
        return _without_case_functions(expression.arguments[0])
    return expression


def _typed_value(
    field: QueryField[Result], literal: expressions.Literal, operator: Operator | None = None
) -> Value:
    """Convert a literal to the type of the property, with which `operator` compares it. Raises
    ApiError 400.
    """
    value = literal.value
    match field.type:
        case FieldType.TEXT if isinstance(value, str):
            return value
        case FieldType.BOOLEAN if isinstance(value, bool):
            return value
        case FieldType.TIME | FieldType.TIME_TEXT if isinstance(value, int) and literal.is_time:
            return value
        case FieldType.TIME_TEXT if isinstance(value, str):
            with suppress(ExtendedPropertyError):
                return time_us(canonical_value("SystemTime", value))
        case FieldType.NUMBER if type(value) is int and not literal.is_time:
            return value
        case FieldType.CHOICE if isinstance(value, str):
            for choice in field.choices:
                if choice.lower() == value.lower():
                    return choice
    expected = _expected_value(field)
    types = [_EDM_TYPES.get(edm_type.name, "") for edm_type in (field.type, literal.token.kind)]
    if operator is None or "" in types or types[0] == types[1]:
        raise _error(literal.token, expected)
    actual = quoted(literal.token.text)
    detail = f"$filter: position {literal.token.position}: found {actual}, expected {expected}."
    raise errors.FILTER_TYPES(detail, *types, _OPERATOR_KINDS[operator])


def _expected_value(field: QueryField[Result]) -> str:
    if field.type is not FieldType.CHOICE:
        return str(field.type.value)
    return "one of " + ", ".join(f"'{choice}'" for choice in field.choices)


def _reject_case_functions(comparison: expressions.Comparison, field: QueryField[Result]) -> None:
    """Reject tolower and toupper for a property that is not a text."""
    for side in (comparison.left, comparison.right):
        if isinstance(side, expressions.FunctionCall):
            raise _error(side.token, f"{_expected_value(field)}, or the property by itself")


def _require_equality(token: expressions.Token, operator: Operator) -> None:
    if operator not in (Operator.EQ, Operator.NE):
        raise _error(token, "eq or ne: the property's values have no order")


def _first_token(expression: expressions.Expression) -> expressions.Token:
    match expression:
        case expressions.Comparison(_, left):
            return _first_token(left)
        case expressions.Not(part):
            return _first_token(part)
        case expressions.And(parts) | expressions.Or(parts):
            return _first_token(parts[0])
        case _:
            return expression.token


def _error(token: expressions.Token, expected: str) -> ApiError:
    message = f"position {token.position}: found {quoted(token.text)}, expected {expected}"
    return expressions.clause_error("filter", message)
