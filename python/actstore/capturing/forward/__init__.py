"""The forward pass: hooks, transfers from the GPU, and the row buffer."""
