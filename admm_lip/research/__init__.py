"""Beside the core, which never imports it: comparators, gradient penalties, detection."""
