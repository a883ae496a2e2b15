"""Debounce and throttle: what a task declares, and when the one job of a burst of calls may go. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

from jobs import idempotency
from jobs.errors import DeclarationError, OptionError

# What every key may name beside the parameters of the body.
PLACES: Final = ("task", "tenant")
# How many times its quiet time a debounced job may wait, where nothing else is said.
TIMES_QUIET: Final = 10

WindowKey = str | Callable[..., str]
Keep = Literal["latest", "first"]
Seconds = float | timedelta


class Rule(NamedTuple):
    """When a burst may go: after ``quiet`` seconds without a call; without ``quiet``, a ``span`` after the last run."""

    quiet: float | None
    span: float
    leading: bool
    trailing: bool
    keep_first: bool


@dataclass(frozen=True, slots=True)
class Debounce:
    """One run for all calls with this key that come within ``quiet`` seconds of each other.

    It waits for ``longest`` seconds since the first of them at most (without it, ten times ``quiet``). The job runs
    with the payload of the latest call, or with ``keep="first"`` of the first.
    """

    key: WindowKey
    quiet: Seconds
    longest: Seconds | None = None
    keep: Keep = "latest"

    def __post_init__(self) -> None:
        told = f"Debounce({_shown(self.key)}, …)"
        quiet = _seconds(told, "quiet", self.quiet)
        if self.longest is not None and _seconds(told, "longest", self.longest) < quiet:
            raise DeclarationError(f"{told}: longest ({self.longest}) must not be shorter than quiet ({self.quiet}).")
        _check_keep(told, self.keep)

    @property
    def rule(self) -> Rule:
        """When its job may go.

        >>> Debounce("customer:{id}", quiet=30).rule
        Rule(quiet=30.0, span=300.0, leading=False, trailing=True, keep_first=False)
        """
        quiet = _as_seconds(self.quiet)
        longest = quiet * TIMES_QUIET if self.longest is None else _as_seconds(self.longest)
        return Rule(quiet, longest, leading=False, trailing=True, keep_first=self.keep == "first")


@dataclass(frozen=True, slots=True)
class Throttle:
    """At most one run in ``span`` seconds for all calls with this key.

    ``leading``: the first call after a quiet time runs at once. ``trailing``: the calls that come within the span are
    one more run at its end, with the payload of the latest (or of the first); without it, the run before stands for
    them.
    """

    key: WindowKey
    span: Seconds
    leading: bool = True
    trailing: bool = True
    keep: Keep = "latest"

    def __post_init__(self) -> None:
        told = f"Throttle({_shown(self.key)}, …)"
        _seconds(told, "span", self.span)
        edges: list[object] = [self.leading, self.trailing]
        if not all(isinstance(edge, bool) for edge in edges):
            raise DeclarationError(f"{told}: leading and trailing are True or False.")
        if not (self.leading or self.trailing):
            raise DeclarationError(f"{told}: with neither leading nor trailing, nothing would ever run.")
        _check_keep(told, self.keep)

    @property
    def rule(self) -> Rule:
        """When its job may go."""
        return Rule(None, _as_seconds(self.span), self.leading, self.trailing, self.keep == "first")


Window = Debounce | Throttle
KINDS: Final[dict[str, type[Window]]] = {"debounce": Debounce, "throttle": Throttle}


class Bound(NamedTuple):
    """The burst that one call belongs to: its key, and when its job may go."""

    key: str
    rule: Rule


def _shown(key: Any) -> str:
    return repr(getattr(key, "__name__", key))


def _seconds(told: str, name: str, value: Any) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float | timedelta) and 0 < _as_seconds(value) < 10**9:
        return _as_seconds(value)
    raise DeclarationError(f"{told}: {name} must be a number of seconds above 0 or a timedelta, not {value!r}.")


def _as_seconds(value: Seconds) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def _check_keep(told: str, keep: Any) -> None:
    if keep not in ("latest", "first"):
        raise DeclarationError(f'{told}: keep is "latest" or "first", whose payload the run has, not {keep!r}.')


# --- Declaring and choosing ---------------------------------------------------------------------------


def check_window(
    name: str, debounce: Any, throttle: Any, key: Any, parameters: Mapping[str, Any] | None
) -> None:  # fmt: skip
    """Refuse what can never work: at declaration, with the remedy."""
    if debounce is not None and throttle is not None:
        raise DeclarationError(f"{name} has both debounce and throttle. Keep the one that says what you want.")
    for option, kind in KINDS.items():
        window = debounce if option == "debounce" else throttle
        if window is None:
            continue
        if not isinstance(window, kind):
            raise DeclarationError(f"The {option} of {name} must be a {kind.__name__}(…), not {window!r}.")
        if key is not None and key is not idempotency.NO_KEY:
            raise DeclarationError(
                f"{name} has a key and a {option}. Both say which calls are one job: remove key, the {option} has one."
            )
        check_template(name, window, parameters)


def check_template(name: str, window: Window, parameters: Mapping[str, Any] | None) -> None:
    """Refuse a key that can never be made from the parameters of the body."""
    places = dict.fromkeys(PLACES, inspect.Parameter("place", inspect.Parameter.KEYWORD_ONLY))
    known = None if parameters is None else {**parameters, **places}
    idempotency.check_key(f"the {type(window).__name__.lower()} of {name}", window.key, known)


def chosen(name: str, declared: Window | None, given: Mapping[str, Any]) -> Window | None:
    """The window of one call: its own before that of its task; none where it says ``debounce=False``."""
    own = [option for option in KINDS if given.get(option) is not None]
    if not own:
        return declared
    if len([option for option in own if given[option] is not False]) > 1:
        raise OptionError(f"A call of {name} has both debounce and throttle. Give one of them.")
    found: Window | None = None
    for option in own:
        if given[option] is not False:
            found = _window(name, option, given[option])
    return found


def _window(name: str, option: str, value: Any) -> Window:
    """A window as a call gives it: itself, or a mapping of what it is made of, as signatures need it."""
    kind = KINDS[option]
    if isinstance(value, Mapping):
        names = [field.name for field in fields(kind)]
        if wrong := sorted(set(value) - set(names)) or [need for need in names[:2] if need not in value]:
            raise OptionError(
                f"{option} of a call of {name} must say {names[0]} and {names[1]}, and may say {', '.join(names[2:])}: "
                f"{'it does not know' if wrong[0] in value else 'it lacks'} {', '.join(wrong)}."
            )
        try:
            return kind(**value)
        except DeclarationError as error:
            raise OptionError(f"{option} of a call of {name}: {error}") from None
    if isinstance(value, kind):
        return value
    raise OptionError(f"{option} of a call of {name} must be a {kind.__name__}(…) or False, not {value!r}.")


def bind(name: str, window: Window, arguments: Mapping[str, Any], tenant: str) -> Bound:
    """The burst of a call with these arguments.

    >>> bind("sync", Debounce("customer:{id}", 30), {"id": 7}, "").key
    'customer:7'
    """
    places = arguments if callable(window.key) else {"task": name, "tenant": tenant, **arguments}
    made = idempotency.make_key(f"the {type(window).__name__.lower()} of {name}", window.key, places)
    return Bound(str(made), window.rule)


# --- When it may go -----------------------------------------------------------------------------------


def due(
    rule: Rule, first: datetime, last: datetime, *, started: datetime | None = None, starting: bool = False
) -> datetime | None:
    """When the job may go of a burst whose first and last calls came then; None while nobody can know.

    For a throttle, the run before has ``started`` then, or it is about to (``starting``). A call belongs to the burst
    if it comes before this time.

    >>> noon = datetime(2030, 1, 1, 12)
    >>> print(due(Debounce("k", 30).rule, noon, noon + timedelta(seconds=10)))
    2030-01-01 12:00:40
    >>> print(due(Debounce("k", 30, longest=35).rule, noon, noon + timedelta(seconds=10)))
    2030-01-01 12:00:35
    >>> print(due(Throttle("k", 60).rule, noon, noon, started=noon - timedelta(seconds=20)))
    2030-01-01 12:00:40
    """
    span = timedelta(seconds=rule.span)
    if rule.quiet is not None:
        return min(first + span, last + timedelta(seconds=rule.quiet))
    if starting:
        return None
    own = first if rule.leading else first + span
    return own if started is None else max(own, started + span)
