"""The replica beside engines that nobody here wrote: the same random workload to both, every answer compared.

- `shapes`, `filters`, `searches`, `changes`, `faults`, `workload`: a workload is a list of calls, from a seed
- `local_mode`, `engine`, `server`: the oracles
- `answers`, `comparison`: what an answer says, and when two answers say the same
- `differences`: every known difference between an oracle and the server that the replica follows
- `play`, `shrink`: run a workload on both; make one that disagrees short
"""
