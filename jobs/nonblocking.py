"""A connection to PostgreSQL that an event loop waits for: statements go out, and the loop goes on meanwhile.

It is there for what another way could do as well: where it breaks, or is silent, whoever asked is told so, and it is
made anew in a thread, because to connect may take long.
"""

from __future__ import annotations

import logging
import math
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from jobs import lifecycle
from jobs.statements import Statement

logger = logging.getLogger("jobs.worker")

SILENCE = 5.0  # seconds that the database may take to answer
LAST_ANSWER = 1.0  # seconds that it may take when the loop has ended
PAUSE = 3.0  # seconds between two tries to connect; longer each time that nothing came of it
LONGEST_PAUSE = 60.0

Rows = list[tuple[Any, ...]]
# Called with the rows of each statement, or with None where it is unknown what became of them.
Answered = Callable[[list[Rows] | None], None]


class Nonblocking:
    """One connection, with at most one question on its way."""

    def __init__(self, hub: Any, statements: Sequence[Statement], ready: Callable[[], None]) -> None:
        self._hub = hub
        self._statements = statements
        self._ready = ready
        self._wrapper: Any = None
        self._socket = -1
        self._pause = PAUSE
        self._answered: Answered | None = None
        self._asked_at = 0.0
        self._rows: list[Rows] = []
        self._failed = False
        self._unsent = False
        self._connecting = False
        self._closed = False
        self._next_try = 0.0

    @property
    def connected(self) -> bool:
        """Whether something may be asked, once what was asked is answered."""
        return self._wrapper is not None

    # --- Connecting ---

    def look(self) -> None:
        """Called now and then in the loop: give up a silent connection, and try again to have one."""
        if self._closed:
            return
        now = time.monotonic()
        if self._answered is not None and now - self._asked_at > SILENCE:
            self._break("the database has not answered")
        if self._wrapper is None and not self._connecting and now >= self._next_try:
            self._connecting, self._next_try = True, now + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            threading.Thread(target=self._connect, name="mainstay-connect", daemon=True).start()

    def _connect(self) -> None:
        wrapper: Any = None
        try:
            wrapper = lifecycle.database().copy()
            wrapper.inc_thread_sharing()
            wrapper.ensure_connection()
            with wrapper.cursor() as cursor:
                for statement in self._statements:
                    cursor.execute(statement.preparing)
            wrapper.connection.pgconn.nonblocking = 1
        except Exception as error:
            logger.debug("No connection for the event loop: %s", error)
            with suppress(Exception):
                wrapper.close()
            wrapper = None
        self._hub.call_soon(self._connected, wrapper)

    def _connected(self, wrapper: Any) -> None:
        self._connecting = False
        if wrapper is None:
            return
        if self._closed:
            with suppress(Exception):
                wrapper.close()
        else:
            self._wrapper, self._unsent = wrapper, False
            self._socket = self._pgconn.socket
            self._hub.add_reader(self._socket, self._on_readable)
            self._ready()

    @property
    def _pgconn(self) -> Any:
        return self._wrapper.connection.pgconn

    # --- Asking ---

    def ask(self, questions: Sequence[tuple[Statement, Sequence[Any]]], answered: Answered) -> None:
        """Run statements in one transaction and one round trip; tell the rows of each, or that nobody knows."""
        self._answered, self._asked_at, self._rows, self._failed = answered, time.monotonic(), [], False
        try:
            self._send(questions)
            self._flush()
        except Exception as error:
            self._break(str(error))

    def _send(self, questions: Sequence[tuple[Statement, Sequence[Any]]]) -> None:
        (statement, given), *more = questions
        if not more and all(isinstance(one, str | int | UUID) for one in given):
            # To put parameters into a text takes a fifth of the time that the whole answer does.
            self._pgconn.send_query_prepared(statement.name.encode(), [str(one).encode() for one in given])
            return
        text = "; ".join(self._wrapper.ops.compose_sql(one.executing, given) for one, given in questions)
        self._pgconn.send_query(text.encode())

    def _flush(self) -> None:
        """Send what the socket takes, and watch for when it takes the rest, or else for the answer."""
        unsent = bool(self._pgconn.flush())
        if unsent == self._unsent:
            return
        self._unsent = unsent
        # The loop's epoll takes a descriptor once: one that is watched already is not watched for more.
        self._hub.remove(self._socket)
        if unsent:
            self._hub.add_writer(self._socket, self._on_writable)
        else:
            self._hub.add_reader(self._socket, self._on_readable)

    def _on_writable(self) -> None:
        self._asked_at = time.monotonic()  # who takes something is not silent
        try:
            self._pgconn.consume_input()
            self._flush()
        except Exception as error:
            self._break(str(error))
            return
        if not self._unsent:
            # To consume also sends: the answer may have been read already, and then the socket never says so.
            self._on_readable()

    def _on_readable(self) -> None:
        try:
            self._pgconn.consume_input()
            while not self._pgconn.is_busy():
                result = self._pgconn.get_result()
                if result is None:
                    self._tell()
                    return
                self._take(result)
        except Exception as error:
            self._break(str(error))

    def _take(self, result: Any) -> None:
        from psycopg.adapt import Transformer
        from psycopg.pq import ExecStatus

        if result.status == ExecStatus.TUPLES_OK:
            reading = Transformer(self._wrapper.connection)
            reading.set_pgresult(result)
            self._rows.append(reading.load_rows(0, result.ntuples, tuple))
        elif result.status != ExecStatus.COMMAND_OK:
            self._failed = True
            logger.debug("Statements of the event loop failed: %s", result.error_message)

    def _tell(self) -> None:
        """All answers are there. A statement that failed has undone the others of its transaction."""
        if self._failed:
            self._break("a statement failed")
        else:
            self._pause = PAUSE
            self._answer(self._rows)

    def _break(self, why: str) -> None:
        """Throw the connection away; who asked does not know what became of it."""
        logger.debug("The event loop's connection is given up: %s", why)
        wrapper, self._wrapper = self._wrapper, None
        if wrapper is not None:
            with suppress(Exception):
                self._hub.remove(self._socket)
            with suppress(Exception):
                wrapper.close()
        self._answer(None)

    def _answer(self, rows: list[Rows] | None) -> None:
        answered, self._answered = self._answered, None
        if answered is None:
            return
        try:
            answered(rows)
        except Exception:
            logger.exception("The event loop could not go on with what the database answered.")

    # --- Without the loop ---

    def wait(self, seconds: float) -> bool:
        """Wait so long at most for the answer to what was asked, without the loop; whether it is there.

        That nobody knows what became of it is an answer too.
        """
        asked, until = self._answered, time.monotonic() + seconds
        while self._answered is not None and self._answered is asked:
            left = until - time.monotonic()
            if left <= 0:
                return False
            try:
                self._await(left)
            except Exception as error:
                self._break(str(error))
        return True

    def _await(self, seconds: float) -> None:
        """Wait until the socket can be read, or takes what is not sent yet, and do so."""
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        if poll.poll(math.ceil(seconds * 1000)):
            self._on_writable() if self._unsent else self._on_readable()

    def close(self) -> None:
        """Give the connection back, once what was asked is answered: the loop that would hear of it has ended."""
        self._closed = True
        try:
            self.wait(LAST_ANSWER)
        finally:
            self._break("closed")
