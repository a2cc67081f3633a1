"""The LLM serving gateway that keeps its promises: see docs/walk.md for the path of one request."""

__version__ = "0.1.0"
