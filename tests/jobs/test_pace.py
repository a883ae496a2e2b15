"""How many messages a worker may hold ahead of its turn."""

from jobs.pace import MOST, SPAN, Pace


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def paced() -> tuple[Pace, Clock]:
    clock = Clock()
    return Pace(clock), clock


def end(pace: Pace, jobs: int) -> None:
    for _ in range(jobs):
        pace.note()


def test_a_worker_that_has_ended_nothing_holds_nothing_ahead() -> None:
    assert paced()[0].ahead(2) == 0


def test_as_many_may_be_held_ahead_as_ended_within_a_moment() -> None:
    pace, clock = paced()
    end(pace, 3)
    clock.now += 1.01 * SPAN
    assert pace.ahead(2) == 3


def test_never_more_than_a_few_for_each_that_may_be_held_anyway() -> None:
    pace, _ = paced()
    end(pace, 500)
    assert pace.ahead(2) == 2 * MOST


def test_none_when_no_job_has_ended_for_two_moments() -> None:
    pace, clock = paced()
    end(pace, 8)
    clock.now += 2 * SPAN
    assert pace.ahead(2) == 0


def test_a_moment_in_which_none_ended_counts_for_itself() -> None:
    pace, clock = paced()
    end(pace, 8)
    clock.now += 1.01 * SPAN
    assert pace.ahead(2) == 8
    clock.now += 1.01 * SPAN
    assert pace.ahead(2) == 0


def test_it_says_for_how_long_no_job_has_ended() -> None:
    pace, clock = paced()
    end(pace, 1)
    clock.now += 1.5
    assert pace.still_for == 1.5
