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


def go_on(pace: Pace, clock: Clock, *spans: int) -> None:
    """So many jobs end in each of the next spans."""
    for jobs in spans:
        end(pace, jobs)
        clock.now += 1.01 * SPAN


def test_as_many_may_be_held_ahead_as_ended_in_a_moment_of_late() -> None:
    pace, clock = paced()
    go_on(pace, clock, 5, 3, 4)
    assert pace.ahead(2) == 4


def test_never_more_than_a_few_for_each_that_may_be_held_anyway() -> None:
    pace, clock = paced()
    go_on(pace, clock, 500, 500, 500)
    assert pace.ahead(2) == 2 * MOST


def test_long_jobs_that_end_together_are_no_short_ones() -> None:
    pace, clock = paced()
    go_on(pace, clock, 0, 4, 4, 0)
    assert pace.ahead(8) == 0


def test_none_as_soon_as_no_job_ends() -> None:
    pace, clock = paced()
    go_on(pace, clock, 8, 8, 8)
    assert pace.ahead(2) == 8
    go_on(pace, clock, 0)
    assert pace.ahead(2) == 0


def test_none_after_a_pause_of_any_length() -> None:
    pace, clock = paced()
    go_on(pace, clock, 8, 8, 8)
    clock.now += 3600
    assert pace.ahead(2) == 0


def test_it_says_for_how_long_jobs_have_been_slow() -> None:
    pace, clock = paced()
    go_on(pace, clock, 8, 8, 8)
    for _ in range(3):
        clock.now += 0.5
        end(pace, 1)
    assert 1.5 < pace.slow_for < 1.5 + 4 * SPAN
    go_on(pace, clock, 8, 8, 8)
    assert pace.slow_for < SPAN
