"""Evaluation: bits per byte, count-model baselines, generation."""
