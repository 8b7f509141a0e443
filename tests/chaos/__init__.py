"""Exactly once under fire: services, workers and a broker that die while events are worked on."""
