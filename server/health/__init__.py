"""Is Qdrant up, where do calls go, and may replay try?

`detector` (PURE) turns single observations into a verdict, `monitor` makes them and tells of each new verdict,
`callbacks` tells subscribers without waiting for them, `state` (PURE) is the table REMOTE, LOCAL, DRAINING, and
`breaker` (PURE) guards replay.
"""
