"""``python -m tests.bench``, which ``make bench`` calls."""

import sys

from tests.bench.runner import main

if __name__ == "__main__":
    sys.exit(main())
