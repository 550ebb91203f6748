"""What others have written to check servers of this kind, run against ``ryzc serve``.

A suite comes from a package registry, pinned by hash, into an environment of its own in the cache. What it finds is
held against ``expected/NAME.toml``, a list of the tests that fail and why each one must: a failure that is not in it is
an error, and so is a test of it that passes, so the list can only become shorter. ``make api-coverage`` runs all of
them and writes ``docs/api-coverage.md``.
"""
