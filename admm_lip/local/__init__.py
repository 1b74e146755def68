"""Local bounds: what a network does on a ball around one input."""
