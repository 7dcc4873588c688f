"""Training logs of many tools: one function that reads them, and a sentence about what was read."""

from simulate.logs.read import describe_log, read_log

__all__ = ["describe_log", "read_log"]
