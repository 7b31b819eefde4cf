"""Rows of layers, on disk or in memory, and views of them."""
