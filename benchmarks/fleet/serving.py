"""The fleet's server of a folder, with no limit to what one device may ask: ``serving.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edge.fleet import server
from edge.fleet.desk import Desk
from edge.fleet.store import Store
from tests.fleets import NO_LIMITS

desk = Desk(Store(Path(sys.argv[1]) / "fleet"), limits=NO_LIMITS)
application = server.Application(desk, token="-" * 40)
server.serve(application, host="127.0.0.1", port=0, tls=None, on_ready=lambda url: print(url, flush=True))
