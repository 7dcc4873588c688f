"""Tables of the documentation, each printed by its own module."""
