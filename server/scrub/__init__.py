"""PURE. No secret at rest: what the rules find is replaced before it reaches disk, log or span.

`rules.py` reads rules in gitleaks' TOML format, `engine.py` finds and redacts, `requests.py` walks requests.
"""

from server.scrub.requests import Scrubbed, Scrubber

__all__ = ["Scrubbed", "Scrubber"]
