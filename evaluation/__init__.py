"""How good a detector is: arrays and tables in, numbers out."""
