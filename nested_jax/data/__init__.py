"""Data: text as bytes, in seeded resumable batches."""
