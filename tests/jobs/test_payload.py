"""A payload: checked against the signature, carried as JSON, upgraded by version."""

import inspect
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from jobs import payload
from jobs.errors import PayloadError
from jobs.payload import Payload, coerce, decode, encode, restore


class Colour(Enum):
    RED = "red"


class Address(BaseModel):
    street: str
    number: int


@dataclass
class Point:
    x: int
    y: int


def run(order_id: int, note: str = "", *, express: bool = False) -> None:
    """A body."""


def rich(address: Address, colour: Colour, at: datetime, positive: Annotated[int, Field(gt=0)] = 1) -> None:
    """A body with types that JSON does not have."""


def untyped(a, b=2):
    """A body without annotations."""


def open_ended(first: int, *rest: int, **named: str) -> None:
    """A body that takes what comes."""


def call(*args, **kwargs):
    return Payload(args, kwargs)


def only_by_name(*, a: int, b: int = 2) -> None:
    """A body that takes nothing by place."""


@pytest.mark.parametrize("body", [run, rich, untyped, open_ended, only_by_name, lambda: None, lambda a, /, b=1: None])
@pytest.mark.parametrize("count", range(6))
def test_arguments_by_place_fit_where_python_would_take_them(body: Any, count: int) -> None:
    try:
        inspect.signature(body).bind(*range(count))
    except TypeError:
        with pytest.raises(PayloadError, match="cannot be called like this"):
            payload.fitting(body, Payload(tuple(range(count))), "t")
    else:
        payload.fitting(body, Payload(tuple(range(count))), "t")


# --- As JSON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [1, 1.5, "x", "ü", True, None, [1, 2], {"a": {"b": [1]}}, datetime(2030, 1, 1, tzinfo=UTC), date(2030, 1, 1),
     UUID(int=7), Decimal("1.10"), b"bytes"],
)  # fmt: skip
def test_a_value_that_json_can_carry_comes_back_the_same(value):
    assert decode(encode(call(value, a=value))) == call(value, a=value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(min_size=1).filter(lambda k: not k.startswith("__")), inner)
    ),
    max_leaves=8,
)


@given(st.lists(JSON), st.dictionaries(st.text(min_size=1), JSON))
def test_any_json_comes_back_the_same(args, kwargs):
    assert decode(encode(Payload(tuple(args), kwargs))) == Payload(tuple(args), kwargs)


def test_a_tuple_becomes_a_list():
    assert decode(encode(call((1, 2)))) == call([1, 2])


@pytest.mark.parametrize("value", [object(), float("nan"), float("inf"), {1, 2}, lambda: None, Exception("x")])
def test_a_value_that_json_cannot_carry_is_refused_with_what_to_pass(value):
    with pytest.raises(PayloadError, match=r"This is not JSON: .* Pass plain values, or the id of a record"):
        encode(call(value))


def test_a_value_that_contains_itself_is_refused():
    ring = []
    ring.append(ring)
    with pytest.raises(PayloadError, match="This is not JSON"):
        encode(call(ring))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"args": []}', '{"args": 3, "kwargs": {}}', '{"args": [], "kwargs": 3}']
)
def test_a_text_that_is_no_payload_is_refused_with_its_form(text):
    with pytest.raises(PayloadError, match=r'A payload is a JSON object \{"args"'):
        decode(text)


def test_a_payload_of_exactly_the_limit_is_accepted():
    assert payload.limit("x" * 10, 10, "t") == "x" * 10


def test_a_larger_payload_is_refused_with_the_advice_to_pass_a_reference():
    with pytest.raises(PayloadError, match=r"The payload of t has 11 bytes; the limit is 10\. .* pass a reference"):
        payload.limit("x" * 11, 10, "t")


def test_the_limit_counts_bytes():
    with pytest.raises(PayloadError, match="has 20 bytes"):
        payload.limit("ü" * 10, 10, "t")


# --- Against a signature ---------------------------------------------------------------------------


@pytest.mark.parametrize("given_", [call(1), call(order_id=1), call(1, "x", express=True), call(1, note="x")])
def test_a_payload_that_fits_is_kept_as_it_was_given(given_):
    assert coerce(run, given_, "t") == given_


@pytest.mark.parametrize(
    "given_", [call(), call(1, "x", True), call(1, order_id=1), call(order=1), call(1, colour="red")]
)
def test_a_payload_with_wrong_parameters_is_refused_with_the_signature(given_):
    with pytest.raises(PayloadError, match=r"shop\.ship\(order_id: int, .* cannot be called like this"):
        coerce(run, given_, "shop.ship")


@pytest.mark.parametrize("given_", [call("seven"), call(None), call(1.5), call(1, note=7), call(1, express="perhaps")])
def test_a_payload_of_wrong_types_is_refused_with_the_parameter(given_):
    with pytest.raises(PayloadError, match=r"does not fit shop\.ship\(.*\).*: (order_id|note|express): "):
        coerce(run, given_, "shop.ship")


def test_a_value_that_is_given_by_name_survives_a_change_of_the_order():
    kept = coerce(run, call(order_id="7", note="x"), "t")
    assert kept == call(order_id=7, note="x")


def test_every_value_that_does_not_fit_is_named():
    with pytest.raises(PayloadError, match=r"order_id: .*; note: "):
        coerce(run, call("seven", note=7), "t")


@pytest.mark.parametrize("value", ["7", 7.0, Decimal(7)])
def test_a_value_that_can_be_coerced_is_kept_coerced(value):
    assert coerce(run, call(value), "t") == call(7)


def test_a_payload_error_is_a_type_error_as_in_celery():
    assert issubclass(PayloadError, TypeError)


def test_a_model_is_kept_as_json():
    kept = coerce(rich, call(Address(street="Quay", number=1), Colour.RED, at=datetime(2030, 1, 1, tzinfo=UTC)), "t")
    assert kept.args[:2] == ({"street": "Quay", "number": 1}, "red")


def test_a_model_may_be_given_as_json():
    kept = coerce(rich, call({"street": "Quay", "number": "1"}, "red", at="2030-01-01T00:00:00Z"), "t")
    assert decode(encode(kept)) == kept


def test_the_body_gets_the_types_that_it_asks_for():
    kept = coerce(rich, call({"street": "Quay", "number": 1}, "red", at="2030-01-01T00:00:00Z"), "t")
    args, kwargs = restore(rich, decode(encode(kept)), "t")
    assert [*args, *kwargs.values()] == [
        Address(street="Quay", number=1),
        Colour.RED,
        datetime(2030, 1, 1, tzinfo=UTC),
    ]


def test_a_constraint_of_a_type_is_checked():
    with pytest.raises(PayloadError, match="positive: Input should be greater than 0"):
        coerce(rich, call({"street": "Quay", "number": 1}, "red", datetime.now(UTC), positive=0), "t")


@pytest.mark.parametrize(
    ("kind", "value"),
    [(Decimal, Decimal("1.10")), (timedelta, timedelta(hours=1)), (UUID, uuid4()), (date, date(2030, 1, 1)),
     (set[int], {1, 2}), (tuple[int, str], (1, "a")), (Point, Point(1, 2)), (int | None, None),
     (list[Address], [Address(street="Q", number=1)]),
     (bytes, b"x"), (dict[str, Decimal], {"a": Decimal("1.1")})],
)  # fmt: skip
def test_a_typed_value_reaches_the_body_as_it_was_given(kind, value):
    def body(it):
        """A body with one parameter of the type."""

    body.__annotations__ = {"it": kind}
    kept = decode(encode(coerce(body, call(value), "t")))
    args, _ = restore(body, kept, "t")
    assert args == (value,)


def test_a_body_without_annotations_takes_any_value():
    assert coerce(untyped, call("x", b=[1]), "t") == call("x", b=[1])


def test_a_body_without_annotations_is_still_checked_for_its_parameters():
    with pytest.raises(PayloadError, match="cannot be called like this"):
        coerce(untyped, call(1, 2, 3), "t")


def test_a_body_may_take_what_comes():
    assert coerce(open_ended, call(1, 2, 3, a="x"), "t") == call(1, 2, 3, a="x")


def test_a_parameter_of_any_type_takes_any_value():
    def body(it: Any) -> None:
        """A body."""

    assert coerce(body, call({"a": 1}), "t") == call({"a": 1})


def test_a_stored_payload_that_no_longer_fits_is_refused():
    with pytest.raises(PayloadError, match="The stored payload does not fit"):
        restore(run, call("seven"), "t")


def test_arguments_are_known_by_name_with_their_defaults():
    assert payload.arguments(run, call(7)) == {"order_id": 7, "note": "", "express": False}


# --- Values that are still to come -----------------------------------------------------------------


def test_a_payload_can_wait_for_the_result_of_another_job():
    waiting = Payload((payload.later(), 2), {})
    assert waiting.waits()
    assert waiting.fulfilled(1) == call(1, 2)


def test_a_payload_that_waits_still_waits_after_it_was_kept():
    assert decode(encode(Payload((payload.later(),), {}))).waits()


def test_an_ordinary_payload_does_not_wait():
    assert not call(1, {"a": 1}).waits()


# --- Versions --------------------------------------------------------------------------------------

UPCASTERS = {
    1: lambda p: Payload((), {"order_id": p.args[0]}),
    2: lambda p: Payload((), {**p.kwargs, "note": "from version 2"}),
}


def test_a_payload_of_todays_version_is_left_alone():
    assert payload.upgrade(call(7), 3, 3, UPCASTERS, "t") == call(7)


def test_an_old_payload_is_brought_up_step_by_step():
    assert payload.upgrade(call(7), 1, 3, UPCASTERS, "t") == call(order_id=7, note="from version 2")


def test_a_missing_step_is_named():
    with pytest.raises(PayloadError, match="t has no upcaster from version 3 to 4"):
        payload.upgrade(call(7), 1, 4, UPCASTERS, "t")


def test_a_payload_of_newer_code_is_refused():
    with pytest.raises(PayloadError, match="has version 4; this worker knows 3"):
        payload.upgrade(call(7), 4, 3, UPCASTERS, "t")


def test_a_long_value_is_shown_short():
    assert payload.shorten("x" * 300) == "x" * 199 + "…"
