"""The tests of the harness need no platform; what only its processes import is not collected."""

collect_ignore = ["apps.py", "ours.py", "peers", "settings.py", "tasks.py"]
