"""A run's bookkeeping: settings, run directories, splits, starting points, and resuming after an interruption."""
