"""What a command prints, apart from what it says: alignment, control characters, progress."""

from io import StringIO

import pytest
from django.core.management.base import OutputWrapper

from jobs.management import rendering
from jobs.management.rendering import Column, Paper, counting
from tests.jobs.cli import Terminal

TABLE = (Column("queue"), Column("jobs", right=True))


def paper(stream: StringIO) -> Paper:
    return Paper(OutputWrapper(stream))


def test_a_cell_that_would_steer_the_terminal_cannot() -> None:
    stream = Terminal()
    paper(stream).table(TABLE, [("\x1b]0;title\x07", 1)])
    assert "\x1b]0;" not in stream.getvalue()


def test_markup_in_a_cell_is_shown_as_it_is() -> None:
    stream = Terminal()
    paper(stream).table(TABLE, [("[bold]x[/bold]", 1)])
    assert "[bold]x[/bold]" in stream.getvalue()


def test_a_cell_stays_on_its_line() -> None:
    stream = StringIO()
    paper(stream).table(TABLE, [("two\nlines", 1)])
    assert "two lines" in stream.getvalue()


def test_empty_facts_are_left_out() -> None:
    stream = StringIO()
    paper(stream).facts([("queue", "mail"), ("tenant", ""), ("key", None)])
    assert stream.getvalue() == "queue  mail\n"


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 2.5, 2.5])
    monkeypatch.setattr(rendering.time, "monotonic", lambda: next(clock))
    stream = StringIO()
    with counting(OutputWrapper(stream), "pruned", 2000) as progress:
        progress(500)
        progress(1000)
    assert stream.getvalue() == "pruned: 1,000 of 2,000\n"
