"""Hiding secrets, and putting them back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import PayloadError
from jobs.masking import MASK, mask, secret, unmask

HIDDEN = [
    "password",
    "PASSWD",
    "db_password",
    "token",
    "access-token",
    "client_secret",
    "Authorization",
    "apiKey",
    "card_no",
]
SHOWN = ["order_id", "discard", "max_tokens", "tokenizer", "cardinality", "author", "keyboard", "company"]

names = st.sampled_from([*HIDDEN, *SHOWN])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text().filter(lambda text: MASK not in text),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize("name", HIDDEN)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert secret(name)


@pytest.mark.parametrize("name", SHOWN)
def test_a_name_that_only_looks_alike_is_shown(name: str) -> None:
    assert not secret(name)


@given(values)
def test_unmasking_what_was_masked_gives_the_original(value: Any) -> None:
    assert unmask(mask(value), value) == value


def test_what_was_typed_replaces_a_secret() -> None:
    assert unmask({"password": "new"}, {"password": "old"}) == {"password": "new"}


@pytest.mark.parametrize(
    ("edited", "original"),
    [
        ({"other": MASK}, {"password": "x"}),
        ([{"token": MASK}], [{"token": "a"}, {"token": "b"}]),
        ({"a": f"x{MASK}"}, {"a": 1}),
    ],
)
def test_a_mask_without_an_original_is_refused(edited: Any, original: Any) -> None:
    with pytest.raises(PayloadError, match="Type it in full"):
        unmask(edited, original)
