"""The commands of `bnwd`, by what they are about."""
