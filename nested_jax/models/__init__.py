"""Flax (Linen) modules: thin shells that declare parameters and call the pure functions below."""
