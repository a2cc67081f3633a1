"""Builds a gateway out of its rooms and runs it: the one place that knows them all."""
