"""What makes two dead letters the same trouble: task, error, and place in the code. Pure."""

from __future__ import annotations

import hashlib
import re

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line \d+, in (?P<function>\S+)', re.MULTILINE)


_STATUS = re.compile(r"\b[1-5]\d\d\b")


def fingerprint(task: str, error_type: str, traceback: str, reason: str = "", message: str = "") -> str:
    """A digest of the task, the class of the error and the innermost function it passed; line numbers do not count.

    >>> a = fingerprint("t", "ValueError", 'File "/a/x.py", line 3, in run')
    >>> a == fingerprint("t", "ValueError", 'File "/b/x.py", line 9, in run')
    True
    """
    parts = [
        task,
        error_type + status(error_type, message),
        place(traceback) or re.sub(r"[0-9a-f-]{8,}|\d+", "#", reason),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def place(traceback: str) -> str:
    """Where it happened: the last file name and function of a traceback.

    >>> place('File "/srv/app/billing.py", line 3, in charge')
    'billing.py:charge'
    """
    frames = list(_FRAME.finditer(traceback))
    if not frames:
        return ""
    return f"{frames[-1]['file'].replace(chr(92), '/').rsplit('/', 1)[-1]}:{frames[-1]['function']}"


def status(error_type: str, message: str) -> str:
    """The status in the message of an HTTP error: a refused card is not the same trouble as a lost order.

    >>> status("httpx.HTTPStatusError", "Client error '402 Payment Required' for url 'http://gateway/1'")
    ' 402'
    """
    found = _STATUS.search(message) if error_type.rsplit(".", 1)[-1] in {"HTTPStatusError", "HTTPError"} else None
    return f" {found.group()}" if found else ""
