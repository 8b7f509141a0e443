"""The demonstration: a simulated survey goes through the real service and is checked."""
