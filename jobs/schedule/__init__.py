"""Schedules: when they fire, what becomes of fires that were missed, and the ledger that lets each fire once."""
