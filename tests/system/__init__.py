"""Real processes on real sockets: killed, frozen and brought back under load, then everything is compared."""
