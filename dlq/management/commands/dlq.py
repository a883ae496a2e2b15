"""``manage.py dlq``: look at dead letters and decide about them."""

from __future__ import annotations

from dlq.management.acting import Discard, Replay, Resolve
from dlq.management.looking import List, Show, Stats
from jobs.management.verbs import VerbCommand


class Command(VerbCommand):
    """The verbs on dead letters."""

    help = "Look at dead letters and decide about them. Each verb explains itself: manage.py dlq VERB --help."
    verbs = (List, Show, Stats, Replay, Resolve, Discard)
    examples = (
        "dlq list --group", "dlq show 17", "dlq replay 17 --reason TEXT", "dlq resolve 17 --reason TEXT",
    )  # fmt: skip
