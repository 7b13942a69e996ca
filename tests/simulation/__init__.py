"""The whole proxy in one thread on a virtual clock: see docs/simulation.md."""
