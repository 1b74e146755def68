"""Convolutional networks frequency by frequency, their multipliers constant over space."""
