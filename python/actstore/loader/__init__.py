"""Batches for training loops: the order of rows, reading through a reservoir, prefetching, torch datasets."""
