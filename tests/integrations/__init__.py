"""What applications use, three ways: against Qdrant, through Understudy, and through Understudy while Qdrant is gone.

The packages are the real ones. `apps` are programs written in the shape of a framework; each does the same calls on
every way, and what it was told must be the same.
"""
