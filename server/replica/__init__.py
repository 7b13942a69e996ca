"""The stand-in for Qdrant: a process of its own that speaks the Qdrant API from SQLite and Chroma.

In the proxy:

    process        starts, watches and replaces the process; the proxy's own calls to it
    asking         its end of the socket (wire: the frames)
    hydrate        copies what was in Qdrant before (copying, remote)

In the process, a write from top to bottom:

    __main__       command line, one line on stdout when it serves
    composition    puts the parts together
    answering      its end of the socket; alone it has a gRPC face in its place (grpc_face)
    service        bytes to a thread and back
    writes         prepares a write, applies log entries in order, each once
    resolving      Qdrant's checks; filters and conditions become ids
    applying       operations done to an open transaction
    imports        catalogue and pages from Qdrant; later writes win (touched)
    catalogue      collections, aliases, field indexes, and what clients are told of them
    sharding       shard keys: refused as Qdrant does, or not served
    payload_edits, vector_forms, points, paths, requests, checks, freshness   PURE

and a read: `search` answers, `session` is one consistent view, `filters` and `conditions` (PURE) test points, `index`
is the only place that knows Chroma, `plan` takes down how an answer came about. `store` holds the truth (`reads`,
`records`), `refusal` what Qdrant would say instead.
"""

from collections.abc import Mapping

# For the environment of a process that scans vectors (`scan`); it counts only when it is there before numpy is loaded.
BLAS_ENVIRONMENT: Mapping[str, str] = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# Rows of former states that go with one call, so that none takes long.
FORGOTTEN_AT_ONCE = 1000
