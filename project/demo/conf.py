"""Where the sample shop finds its folder, its payment gateway and its mail server."""

import os
from pathlib import Path

FOLDER = Path(os.environ.get("DEMO_DIR") or Path(__file__).resolve().parents[2] / "var" / "demo")
SEED = int(os.environ.get("DEMO_SEED", "7"))

# Kills a process: for the demo's own worker, whose pool has processes to spare.
POWER_CUT = os.environ.get("DEMO_POWER_CUT") == "1"

GATEWAY_URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8071").rstrip("/")
GATEWAY_TIMEOUT = 2.0
GATEWAY_HANG = 5.0

EMAIL_HOST = os.environ.get("EMAIL_HOST", "127.0.0.1")
EMAIL_PORT = int(os.environ.get("EMAIL_PORT", "8072"))
EMAIL_TIMEOUT = 5.0

GATEWAY_JOURNAL = FOLDER / "gateway.jsonl"
MAILBOX = FOLDER / "mailbox"
ORDER_FILES = FOLDER / "orders"
PICTURES = FOLDER / "pictures"
EXPORTS = FOLDER / "exports"
LEAFLETS = FOLDER / "leaflets"
