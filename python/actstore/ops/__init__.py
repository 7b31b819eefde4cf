"""What is computed from rows, one file a verb."""
