"""Who may call while Qdrant cannot check.

Promises: online every credential passes to Qdrant untouched, and what Qdrant's answer proves is remembered. Offline a
call is let in only with such a proof, or with a configured key: no proof, no data.

`presented.py` reads the call, `proof.py` the answer, `rights.py` says what a write asks of a token, `ledger.py` keeps
hashes on disk, `door.py` learns and checks, `witness.py` lets it learn from Understudy's own calls.
"""

from server.credentials.door import Credentials
from server.credentials.presented import Absent, Claims, Credential
from server.credentials.proof import PROOFS, Proof, proof_of
from server.credentials.witness import Witness

__all__ = ["PROOFS", "Absent", "Claims", "Credential", "Credentials", "Proof", "Witness", "proof_of"]
