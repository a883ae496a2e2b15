"""Keys: how they are made from a payload, and which ones are refused where they are declared."""

import inspect
from datetime import timedelta

import pytest

from jobs.errors import DeclarationError, KeyCannotBeMade
from jobs.idempotency import FOREVER, KEY_LENGTH, NO_KEY, WHILE_UNFINISHED, check_key, check_scope, make_key


def run(invoice_id: int, customer: str = "nobody", *, dry: bool = False) -> None:
    """A body."""


def open_ended(**anything: int) -> None:
    """A body that takes what comes."""


PARAMETERS = inspect.signature(run).parameters


def test_a_template_is_filled_from_the_payload():
    assert make_key("t", "invoice:{invoice_id}:{customer}", {"invoice_id": 7, "customer": "ann"}) == "invoice:7:ann"


def test_a_template_reaches_into_a_value():
    assert make_key("t", "order:{order[id]}", {"order": {"id": 7}}) == "order:7"


def test_a_function_makes_the_key_from_the_arguments():
    assert make_key("t", lambda invoice_id, **rest: f"{invoice_id % 10}", {"invoice_id": 17, "customer": "x"}) == "7"


def test_no_key_makes_none():
    assert make_key("t", NO_KEY, {"invoice_id": 7}) is None


def test_a_template_without_a_field_makes_all_calls_one_job():
    assert make_key("t", "the-only-one", {}) == "the-only-one"


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("{missing}", {"invoice_id": 7}),
        ("{invoice_id.name}", {"invoice_id": 7}),
        ("{invoice_id[a]}", {"invoice_id": 7}),
        (lambda invoice_id: 1 / 0, {"invoice_id": 7}),
        (lambda: "x", {"invoice_id": 7}),
    ],
)
def test_a_key_that_cannot_be_made_says_why(key, arguments):
    with pytest.raises(KeyCannotBeMade, match="The key of t cannot be made from"):
        make_key("t", key, arguments)


@pytest.mark.parametrize("made", ["", None, 7])
def test_a_key_that_is_empty_or_no_text_is_refused(made):
    with pytest.raises(KeyCannotBeMade, match="must be a text that is not empty"):
        make_key("t", lambda: made, {})


def test_a_key_as_long_as_its_column_is_kept():
    assert make_key("t", "x" * KEY_LENGTH, {}) == "x" * KEY_LENGTH


def test_a_longer_key_is_kept_as_a_digest():
    made = make_key("t", "x" * (KEY_LENGTH + 1), {})
    assert made.startswith("sha256:")
    assert len(made) <= KEY_LENGTH


def test_two_long_keys_that_differ_at_the_end_stay_two():
    long = "x" * KEY_LENGTH
    assert make_key("t", long + "a", {}) != make_key("t", long + "b", {})


@pytest.mark.parametrize("key", [NO_KEY, "invoice:{invoice_id}", "{dry}", "constant", lambda **rest: "x"])
def test_a_key_that_can_be_made_is_accepted_at_declaration(key):
    check_key("shop.Charge", key, PARAMETERS)


def test_a_missing_key_is_refused_with_the_line_to_write():
    with pytest.raises(DeclarationError, match=r'Set key = "charge:\{invoice_id\}".*or key = NO_KEY'):
        check_key("shop.Charge", None, PARAMETERS)


def test_a_missing_key_of_a_body_without_parameters_is_refused_too():
    with pytest.raises(DeclarationError, match="has no key"):
        check_key("shop.Charge", None, {})


@pytest.mark.parametrize("key", ["", 7, ["invoice_id"]])
def test_a_key_that_is_no_key_is_refused(key):
    with pytest.raises(DeclarationError, match="must be a text, a function or NO_KEY"):
        check_key("shop.Charge", key, PARAMETERS)


def test_a_template_with_a_field_that_the_body_does_not_take_is_refused_with_those_it_takes():
    with pytest.raises(DeclarationError, match=r"uses invoice, .* It takes: invoice_id, customer, dry"):
        check_key("shop.Charge", "invoice:{invoice}", PARAMETERS)


def test_a_template_with_an_unclosed_brace_is_refused():
    with pytest.raises(DeclarationError, match="is not a template"):
        check_key("shop.Charge", "invoice:{invoice_id", PARAMETERS)


def test_a_template_without_a_name_in_its_field_is_refused():
    with pytest.raises(DeclarationError):
        check_key("shop.Charge", "invoice:{}", PARAMETERS)


def test_a_body_that_takes_anything_may_be_named_after_anything():
    check_key("shop.Charge", "{whatever}", inspect.signature(open_ended).parameters)


@pytest.mark.parametrize("scope", [WHILE_UNFINISHED, FOREVER, timedelta(seconds=1)])
def test_a_scope_is_a_period_or_one_of_two_constants(scope):
    check_scope("shop.Charge", scope)


@pytest.mark.parametrize("scope", [timedelta(0), timedelta(seconds=-1)])
def test_a_scope_that_ends_at_once_is_refused(scope):
    with pytest.raises(DeclarationError, match="must be longer than nothing"):
        check_scope("shop.Charge", scope)


@pytest.mark.parametrize("scope", [60, "forever", None])
def test_a_scope_of_another_type_is_refused(scope):
    with pytest.raises(DeclarationError, match="WHILE_UNFINISHED, FOREVER, a timedelta or Sliding"):
        check_scope("shop.Charge", scope)
