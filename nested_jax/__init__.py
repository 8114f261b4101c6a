"""Nested Learning and test-time memory in JAX: optimizers and in-context memories share one type."""
