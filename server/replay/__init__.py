"""From the log to Qdrant: WAL → upstream → judge → cursor.

`replayer` runs the loop, `stepper` takes one step of it, `delivery` sends one entry. `judge`, `bisect`, `merge`,
`causality`, `parcel` and `unmarked` are pure and decide, `progress` is what status pages show. `examining` looks for
what others changed, `contested` decides what is left of an entry then.
"""

from server.replay.examining import Examiner
from server.replay.judge import Outcome, judge
from server.replay.progress import Progress, ReplayState
from server.replay.replayer import Replayer

__all__ = ["Examiner", "Outcome", "Progress", "ReplayState", "Replayer", "judge"]
