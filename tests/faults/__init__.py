"""Shared fakes: manual clock, backends, disks, toxics; themselves tested."""
