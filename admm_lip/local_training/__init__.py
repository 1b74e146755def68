"""Training with local Lipschitz bounds (Huang et al., NeurIPS 2021), and their proof."""
