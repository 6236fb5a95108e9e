"""The spike classifiers, one a file, and what they read."""
