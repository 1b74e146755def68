"""Networks as data: torch modules read as chains of matrices, on disk and in memory."""
