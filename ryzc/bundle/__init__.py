"""What goes out of the compiler and comes into the runtime: plan, weights, code and tokenizer in a directory."""

from __future__ import annotations

from ryzc.bundle.read import Bundle, is_bundle
from ryzc.bundle.verify import Verified, verify
from ryzc.bundle.weights_file import assign_offsets
from ryzc.bundle.write import check_destination, write

__all__ = ["Bundle", "Verified", "assign_offsets", "check_destination", "is_bundle", "verify", "write"]
