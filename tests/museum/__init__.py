"""Deliberate bugs in the log, each of which some test must notice: `make museum`."""
