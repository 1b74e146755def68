"""Matrix problems of the Lipschitz LMI, and the backends that solve them."""
