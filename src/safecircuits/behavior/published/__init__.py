"""Judges of the field: where each one's published template stands, how it is filled, and how its replies are read."""
