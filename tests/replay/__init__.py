"""From the log to Qdrant."""
