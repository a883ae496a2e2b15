"""``python -m tests.chaos``, which ``make chaos`` calls."""

import sys

from tests.chaos.runner import main

if __name__ == "__main__":
    sys.exit(main())
