"""The norms that input changes are measured in.  Nothing is imported here."""

NORMS = ("l2", "linf")
