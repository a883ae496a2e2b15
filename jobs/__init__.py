"""Durable jobs for Django on Celery: a row for every task, led through its life."""
