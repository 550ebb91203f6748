"""Speed measured against peers; ``python -m benchmarks.compare --help``."""
