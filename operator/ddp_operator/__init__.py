"""A small operator that tells the truth about PyTorchJobs and their checkpoints, and acts on it."""
