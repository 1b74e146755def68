"""Benchmarks: each a command, each with a committed record under ``results/``."""
