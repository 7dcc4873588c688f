"""Tables of the documentation, each printed by a module of its own."""
