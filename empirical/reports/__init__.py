"""Pages for users: the report of a run, of a sweep, and the comparison behind it."""
