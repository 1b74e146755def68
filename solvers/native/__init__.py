"""The native structured backend."""
