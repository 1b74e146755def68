"""admm-lip: certified Lipschitz bounds for ordinary PyTorch networks."""
