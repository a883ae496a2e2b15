"""Kombu's own tests of its Redis transport, run against ours."""
