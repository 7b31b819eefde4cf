"""The benchmarks of actstore: ``python -m benches`` (see README.md beside this file)."""

from .threads import limit_libraries

limit_libraries()  # here, as this runs before numpy is imported
