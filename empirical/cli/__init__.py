"""Commands of `bnwd`, one module per topic."""
