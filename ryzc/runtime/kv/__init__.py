"""The KV pool: which page holds which part of which sequence, and what stays after a sequence has ended."""

from __future__ import annotations

from ryzc.runtime.kv.eviction import EvictionPolicy
from ryzc.runtime.kv.pool import PagePool

__all__ = ["EvictionPolicy", "PagePool"]
