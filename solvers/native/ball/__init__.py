"""The nearest weights inside the spectral ball of a fixed multiplier."""
