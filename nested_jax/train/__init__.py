"""The training program: experiment configs, the loop, checkpoints, metrics and pictures."""
