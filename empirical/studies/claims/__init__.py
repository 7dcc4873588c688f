"""Claims of the paper and of related work, each tested by training."""
