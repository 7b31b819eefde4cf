"""Rows of layers, wherever they lie: on disk or in memory; views of them."""
