"""A service that runs for a long time: what it makes, and whether it grows."""
