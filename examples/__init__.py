"""Short programs to run and read: `python -m examples.plain`, `.sync_client`, `.async_client`, and the demo."""
