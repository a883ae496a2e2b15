"""The admin of dead letters: read them, replay them, resolve them. Every button is a verb of ``dlq.replay``."""

from __future__ import annotations

from dlq.admin import letters  # noqa: F401
