"""Tables, codecs, filters: no loop, no file."""
