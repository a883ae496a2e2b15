"""What the body of a chunk says became of each of its jobs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.errors import OutcomesError


@dataclass(frozen=True, slots=True)
class Done:
    """This job is done; its result is kept with it."""

    result: Any = None


@dataclass(frozen=True, slots=True)
class Failed:
    """This job failed, as if a body of its own had raised the error: ``Failed(Snooze(60))`` puts it back for later."""

    error: BaseException

    def __post_init__(self) -> None:
        if not isinstance(self.error, BaseException):
            raise OutcomesError(f'Failed takes an exception, such as Failed(TransientError("…")), not {self.error!r}.')


Outcome = Done | Failed

_WANTED = (
    "Return an outcome for each payload, in their order (a result, Done(result) or Failed(error)); or a dictionary of "
    "those that are not simply done, by their place from 0; or None where all are done."
)


def read(returned: Any, many: int, task: str) -> list[Outcome]:
    """The outcome of each job, from what the body returned. Raises ``OutcomesError``.

    >>> read([1, ValueError("no")], 2, "send")
    [Done(result=1), Failed(error=ValueError('no'))]
    >>> read({1: "x"}, 2, "send")
    [Done(result=None), Done(result='x')]
    """
    if returned is None:
        return [Done() for _ in range(many)]
    if isinstance(returned, Mapping):
        unknown = [place for place in returned if not _is_place(place, many)]
        if unknown:
            raise OutcomesError(
                f"The body of {task} returned an outcome for {unknown[0]!r}, of {many} payloads. {_WANTED}"
            )
        return [_outcome(returned.get(place), task) for place in range(many)]
    if not isinstance(returned, Sequence) or isinstance(returned, str | bytes):
        raise OutcomesError(f"The body of {task} returned {type(returned).__name__} for {many} payloads. {_WANTED}")
    if len(returned) != many:
        raise OutcomesError(f"The body of {task} returned {len(returned)} outcomes for {many} payloads. {_WANTED}")
    return [_outcome(one, task) for one in returned]


def _is_place(place: object, many: int) -> bool:
    return isinstance(place, int) and not isinstance(place, bool) and 0 <= place < many


def _outcome(said: Any, task: str) -> Outcome:
    if isinstance(said, Done | Failed):
        return said
    if isinstance(said, type) and issubclass(said, BaseException):
        raise OutcomesError(
            f"The body of {task} returned the class {said.__name__}. Return an error: {said.__name__}(…)."
        )
    return Failed(said) if isinstance(said, BaseException) else Done(said)
