"""Datasets in memory, the order of samples and augmentation: pure functions of (seed, epoch, index)."""
