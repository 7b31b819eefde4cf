"""Support for bfloat16 in zarr-python."""
