"""Chains of equal widths, solved side by side."""
