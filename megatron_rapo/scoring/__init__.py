"""From judged groups to training sequences, balanced micro-batches, log-probabilities and the loss."""
