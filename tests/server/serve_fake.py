"""A server as a process of its own, around a stand-in engine: ``serve_fake.py BUNDLE SECONDS_A_TOKEN [NAME…]``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fake_engine import FakeEngine

from ryzc.bundle import Bundle
from ryzc.runtime.loading import read_tokenizer
from ryzc.runtime.server.config import load
from ryzc.runtime.server.models import Entry
from ryzc.runtime.server.process import serve

if __name__ == "__main__":
    path, pause = Path(sys.argv[1]), float(sys.argv[2])
    tokenizer = read_tokenizer(Bundle.open(path))
    entries = [Entry(name, path, 1, 0, 4096) for name in sys.argv[3:] or ["tiny"]]
    config, _ = load({"port": 0}, os.environ)
    serve(config, entries, lambda entry: FakeEngine(tokenizer, "word " * 20, pause=pause), None)
