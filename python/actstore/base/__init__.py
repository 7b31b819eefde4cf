"""The foundation: arrays, selections, argument checks, progress. Nothing here knows about stores."""
