"""Tenants behind one proxy, kept apart by a key in the payload of each point.

Promises: with tenancy on, a call without a tenant is refused; with one, it can neither read nor change points of
another, whether Qdrant or the replica answers. What is not known to be safe is refused.

`identity.py` reads the tenant, `confine.py` has one rule per method (`reads.py`, `writes.py`), `reveal.py` looks
through answers, `layer.py` puts it around the router. See docs/security.md for what is not protected.
"""

from server.tenancy.confine import Passage, confine, passage_of
from server.tenancy.layer import MINIMUM_REMOTE_VERSION, TenancyLayer, is_new_enough
from server.tenancy.reveal import reveal

__all__ = ["MINIMUM_REMOTE_VERSION", "Passage", "TenancyLayer", "confine", "is_new_enough", "passage_of", "reveal"]
