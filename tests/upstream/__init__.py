"""A Qdrant stand-in: its own process, official servicer classes, engine from a third party.

`standin` is the process, `process` starts, kills and restarts it from a test, `engine` turns requests into calls of
qdrant-client's local mode, `journal` and `faults` are what a real server would not have.
"""
