"""ryzc: an ahead-of-time compiler for open-weight language models on AMD Ryzen CPUs."""
