"""Training of real networks with normalization and weight decay, measured at every step."""
