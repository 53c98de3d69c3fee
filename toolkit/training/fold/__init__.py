"""One fold: samples, batches, trainer, state."""
