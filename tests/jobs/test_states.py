"""The states and their moves: what the dictionary promises, nothing of the database."""

import pytest

from jobs.states import CELERY_STATE, FINAL, MEANING, MOVES, UNFINISHED, WAITING, Priority, State, priority_from


@pytest.mark.parametrize("table", [MOVES, MEANING, CELERY_STATE])
def test_every_state_has_its_entry_and_no_other_is_there(table):
    assert set(table) == set(State)


def test_a_job_cannot_leave_a_final_state():
    assert {state for state in State if not MOVES[state]} == {State.COMPLETED, State.FAILED, State.CANCELLED}


def test_every_state_is_either_final_or_unfinished():
    assert set(State) == FINAL | UNFINISHED
    assert not FINAL & UNFINISHED


@pytest.mark.parametrize("state", sorted(UNFINISHED))
def test_every_unfinished_state_leads_to_every_final_one(state):
    assert reachable_from(state) >= FINAL


def test_only_a_reserved_job_can_begin_to_run():
    assert {state for state in State if State.RUNNING in MOVES[state]} == {State.RESERVED}


def test_only_jobs_that_wait_in_the_database_can_be_reserved():
    assert {state for state in State if State.RESERVED in MOVES[state]} == WAITING


@pytest.mark.parametrize("state", sorted(UNFINISHED))
def test_every_unfinished_job_can_be_cancelled(state):
    assert State.CANCELLED in MOVES[state]


def test_the_names_given_to_celery_are_celerys():
    from celery import states

    assert set(CELERY_STATE.values()) <= states.ALL_STATES


@pytest.mark.parametrize("state", sorted(State))
def test_celery_calls_a_job_ready_exactly_when_it_is_final(state):
    from celery import states

    assert (CELERY_STATE[state] in states.READY_STATES) == (state in FINAL)


@pytest.mark.parametrize("value", ["high", "HIGH", 10, Priority.HIGH])
def test_a_priority_is_known_by_name_and_by_number(value):
    assert priority_from(value) is Priority.HIGH


@pytest.mark.parametrize("value", ["urgent", "", 5, -1, 1.0, True, None, [10]])
def test_any_other_priority_is_refused_with_the_four_that_exist(value):
    with pytest.raises(ValueError, match=r"critical \(0\), high \(10\), normal \(20\), low \(30\)"):
        priority_from(value)


def reachable_from(state):
    """Every state that a job in ``state`` can still come to."""
    found, open_ends = set(), [state]
    while open_ends:
        new = MOVES[open_ends.pop()] - found
        found |= new
        open_ends += new
    return found
