"""A run's bookkeeping: settings, run directories, splits, starting points, and going on after an interruption."""
