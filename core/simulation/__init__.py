"""Simulated sky, optics and detector; import from `core.simulate`."""
