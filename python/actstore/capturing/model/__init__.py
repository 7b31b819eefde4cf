"""Models: locating, loading and hashing them."""
