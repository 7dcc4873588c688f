"""Studies: sets of training runs that test claims, predictions and diagnoses."""
