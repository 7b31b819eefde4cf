"""The benchmarks of actstore: ``python -m benches`` (see README.md beside this file)."""
