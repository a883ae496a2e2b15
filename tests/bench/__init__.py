"""``make bench``: Mainstay beside its peers on private servers, measured in turns, with what each keeps printed.

How it works
============

``runner`` goes through the measures (``measures/``), and in each through rounds; in a round everybody has a turn (A B,
then B A), so that what the machine suffers all suffer. ``world`` has the servers, ``systems`` says who is compared and
how each is set up, ``actors`` are their processes, ``meter`` and ``footprint`` read what work has cost, ``musts`` are
the numbers of the design, ``report`` and ``publish`` tell.

How to add a peer: pin it in ``peers.txt``, write ``peers/<name>_peer.py`` (``enqueue enqueue_inside ping``, and
``enqueue_many`` if it has a call for many), describe it in ``systems.py``. What is in ``peers/`` runs in an environment
of its own, where nothing of this repository can be imported. How to add a measure: a module with ``ABOUT``, ``ROUNDS``,
``cases`` and ``take``, named in ``measures/__init__.py`` and ``options.py``; its columns are in ``report.py``.

A drain is believed only when each body ran exactly once, which a Redis of its own counts, and each outcome is recorded
once, which is counted by SQL.
"""
