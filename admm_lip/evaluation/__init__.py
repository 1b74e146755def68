"""What a trained network is worth: attacks, certified accuracy, detection, distances."""
