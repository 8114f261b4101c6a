"""Numerical kernels: references first, accelerated backends beside them."""
