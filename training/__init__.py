"""What the training loop stands on: several processes, checkpoints, losses."""
