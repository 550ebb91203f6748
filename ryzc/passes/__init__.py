"""Passes, one file each: a semantic graph becomes the graph of a step. :mod:`.pipeline` reads top to bottom."""
