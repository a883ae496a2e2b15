"""The tests of the harness need no platform; what only its processes import is not collected."""

collect_ignore = ["apps.py", "plain.py", "plain_settings.py", "producer.py", "rows", "settings.py", "tasks.py"]
