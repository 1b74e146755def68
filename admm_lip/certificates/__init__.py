"""Bounds and their proof: what a network is certified for, and the checks of it."""
