"""Graph to plan, plan to code."""

from ryzc.lower.module import assembly, shared_object
from ryzc.lower.planner import Lowered
from ryzc.lower.walk import lower

__all__ = ["Lowered", "assembly", "lower", "shared_object"]
