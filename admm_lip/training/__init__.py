"""Training under a bound by ADMM, training by other methods, projection afterwards."""
