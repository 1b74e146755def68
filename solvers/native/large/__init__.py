"""The multiplier where that matrix does not fit: first order, and iterative solves on bands."""
