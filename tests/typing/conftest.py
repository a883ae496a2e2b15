"""The samples are read by type checkers, never imported."""

collect_ignore = ["accepted.py", "refused.py"]
