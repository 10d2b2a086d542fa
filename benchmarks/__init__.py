"""Ours against what a user would otherwise use: ``python -m benchmarks.<name> [--quick]`` (all of them: ``make bench``)."""
