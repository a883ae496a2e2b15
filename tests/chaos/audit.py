"""The harness's own tables and triggers in the database of a row: every change of a job's state and lease is kept."""

from __future__ import annotations

import os

POSTGRES = """
CREATE TABLE chaos_audit (
    id bigserial PRIMARY KEY, at timestamptz NOT NULL, writer text NOT NULL, job text NOT NULL,
    old_state text, new_state text, old_attempt int, new_attempt int, old_token text, new_token text,
    old_lease timestamptz, new_lease timestamptz, old_pid int, new_pid int, reason text);
CREATE TABLE chaos_effect (id bigserial PRIMARY KEY, number int NOT NULL, job text NOT NULL, pid int NOT NULL);
CREATE TABLE chaos_order (id bigserial PRIMARY KEY, number int NOT NULL);
CREATE FUNCTION chaos_watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO chaos_audit (at, writer, job, new_state, new_attempt, new_token, new_lease, new_pid, reason)
        VALUES (clock_timestamp(), current_setting('application_name'), NEW.id, NEW.state, NEW.attempt, NEW.token,
                NEW.lease_until, NEW.pid, NEW.reason);
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO chaos_audit (at, writer, job, old_state, old_attempt, old_token, old_lease, old_pid)
        VALUES (clock_timestamp(), current_setting('application_name'), OLD.id, OLD.state, OLD.attempt, OLD.token,
                OLD.lease_until, OLD.pid);
    ELSIF (OLD.state, OLD.attempt, OLD.token, OLD.lease_until, OLD.worker)
        IS DISTINCT FROM (NEW.state, NEW.attempt, NEW.token, NEW.lease_until, NEW.worker) THEN
        INSERT INTO chaos_audit (at, writer, job, old_state, new_state, old_attempt, new_attempt, old_token, new_token,
                                 old_lease, new_lease, old_pid, new_pid, reason)
        VALUES (clock_timestamp(), current_setting('application_name'), NEW.id, OLD.state, NEW.state, OLD.attempt,
                NEW.attempt, OLD.token, NEW.token, OLD.lease_until, NEW.lease_until, OLD.pid, NEW.pid, NEW.reason);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_watch AFTER INSERT OR UPDATE OR DELETE ON jobs_job FOR EACH ROW EXECUTE FUNCTION chaos_watch();
"""

NOW = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
SQLITE = f"""
CREATE TABLE chaos_audit (
    id integer PRIMARY KEY, at text NOT NULL, writer text NOT NULL, job text NOT NULL,
    old_state text, new_state text, old_attempt int, new_attempt int, old_token text, new_token text,
    old_lease text, new_lease text, old_pid int, new_pid int, reason text);
CREATE TABLE chaos_effect (id integer PRIMARY KEY, number int NOT NULL, job text NOT NULL, pid int NOT NULL);
CREATE TABLE chaos_order (id integer PRIMARY KEY, number int NOT NULL);
CREATE TRIGGER chaos_watch_insert AFTER INSERT ON jobs_job BEGIN
    INSERT INTO chaos_audit (at, writer, job, new_state, new_attempt, new_token, new_lease, new_pid, reason)
    VALUES ({NOW}, chaos_writer(), NEW.id, NEW.state, NEW.attempt, NEW.token, NEW.lease_until, NEW.pid, NEW.reason);
END;
CREATE TRIGGER chaos_watch_delete AFTER DELETE ON jobs_job BEGIN
    INSERT INTO chaos_audit (at, writer, job, old_state, old_attempt, old_token, old_lease, old_pid)
    VALUES ({NOW}, chaos_writer(), OLD.id, OLD.state, OLD.attempt, OLD.token, OLD.lease_until, OLD.pid);
END;
CREATE TRIGGER chaos_watch_update AFTER UPDATE ON jobs_job
WHEN OLD.state IS NOT NEW.state OR OLD.attempt IS NOT NEW.attempt OR OLD.token IS NOT NEW.token
    OR OLD.lease_until IS NOT NEW.lease_until OR OLD.worker IS NOT NEW.worker BEGIN
    INSERT INTO chaos_audit (at, writer, job, old_state, new_state, old_attempt, new_attempt, old_token, new_token,
                             old_lease, new_lease, old_pid, new_pid, reason)
    VALUES ({NOW}, chaos_writer(), NEW.id, OLD.state, NEW.state, OLD.attempt, NEW.attempt, OLD.token, NEW.token,
            OLD.lease_until, NEW.lease_until, OLD.pid, NEW.pid, NEW.reason);
END;
"""

WRITER = "chaos:"


def own_mark() -> str:
    """What this process signs with: its id, and that of the process that started it."""
    return f"{WRITER}{os.getpid()}:{os.getppid()}"


def written_by(mark: str) -> tuple[int, int]:
    """The process that wrote an entry and the one that started it, zeros when it did not say.

    >>> written_by("chaos:12:5"), written_by("psql")
    ((12, 5), (0, 0))
    """
    if not mark.startswith(WRITER):
        return 0, 0
    pid, _, parent = mark.removeprefix(WRITER).partition(":")
    return int(pid), int(parent or 0)
