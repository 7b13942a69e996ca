"""The write-ahead log: the only place where a write lives while Qdrant is away.

Promises: a PENDING entry is on the medium before `Log.append` returns; entries come back in the order in which they
were acknowledged; what was changed on disk by anyone else shows and is not replayed. Knows nothing of Qdrant: a body is
bytes, a kind is a number from a list given by the caller.

    signing   PURE  a key for each use, HMAC-SHA256
    record    PURE  bytes of segments, frames, head
    recovery  PURE  what to do about a flaw: a table
    files     the disk: the only fsync
    keysource   keys from elsewhere: a file, the environment, a systemd credential
    keyring   keys that sign the log; keyuse: what needs which, and when an old one goes
    rotation  how a new key takes over in an open log
    reader    frames of a segment, verified
    scan      a directory as it is found
    opening   from a directory to a log that may be appended to
    encoder   from entries to frames, on the event loop
    turnstile   how much may wait for the disk
    writer    the thread that writes and syncs, for all waiting writers at once
    ballast   room on the disk, and what is given up when there is none
    reopening   the segment anew after a failed write or sync
    ledger    what readers may see; memory: how little of it is kept
    reading   entries of an open log, from memory or from disk
    quarantine  entries that Qdrant refuses; keeping: the same off the event loop
    log       what the rest of Understudy calls
    harvest   what of a damaged log can be proven
    salvage   what of it a repair keeps: a table, and a plan
    repair    the plan, carried out
    export    the entries of a log at rest, whole or damaged
    patrol    closed segments, read again and again
    inspect   the same directory without a running server
"""
