"""What can go wrong with a command, as one sentence: which thing cannot be used, and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import DatabaseError, InterfaceError, ProgrammingError

from jobs import declared, lifecycle
from jobs.errors import BrokerUnavailable, JobsError, OptionError
from jobs.masking import mask

REFUSED: Final = 1  # exit code: it could not be done
MISTAKEN: Final = 2  # exit code: it was asked for wrongly

_NO_TABLES = ("no such table", "no such column", "does not exist")


@contextmanager
def as_sentences() -> Iterator[None]:
    """Turn what people can mend into a ``CommandError``; a mistake of ours keeps its traceback."""
    try:
        yield
    except BrokerUnavailable as error:
        raise CommandError(f"The broker {broker_address()} cannot be reached: {one_line(error)}") from error
    except OptionError as error:
        raise mistaken(one_line(error)) from error
    except (JobsError, ImproperlyConfigured) as error:
        raise CommandError(one_line(error)) from error
    except (DatabaseError, InterfaceError) as error:
        raise _of_database(error) from error
    except KeyboardInterrupt:
        raise CommandError("Stopped.", returncode=130) from None


def mistaken(sentence: str) -> CommandError:
    """The error for a request that cannot be meant so."""
    return CommandError(sentence, returncode=MISTAKEN)


def one_line(error: object) -> str:
    """An error's text without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def broker_address() -> str:
    """Where the broker should be, without its password."""
    says = declared.app().conf
    return str(mask(str(says.broker_write_url or says.broker_url or "(of which no address is set)")))


def database_address() -> str:
    """Where the jobs' database should be, without its password."""
    says = lifecycle.database().settings_dict
    vendor, name = lifecycle.database().vendor, says["NAME"]
    if not says.get("HOST"):
        return f"{vendor} {name}"
    port = f":{says['PORT']}" if says.get("PORT") else ""
    return f"{vendor} {name} at {says['HOST']}{port}"


def _of_database(error: Exception) -> CommandError:
    sentence = one_line(error)
    if any(sign in sentence and "database" not in sentence for sign in _NO_TABLES):
        return CommandError(f"The database {database_address()} lacks tables: {sentence}. Run: manage.py migrate")
    if isinstance(error, ProgrammingError):
        raise error
    return CommandError(f"The database {database_address()} cannot be used: {sentence}")
