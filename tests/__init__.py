"""Tests of Understudy; see docs/architecture.md for what each folder holds."""
