"""The version of the toolkit, written here once."""

__version__ = "0.1.0"
