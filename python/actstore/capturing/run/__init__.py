"""Running a whole capture: input groups, commits, progress, interrupts."""
