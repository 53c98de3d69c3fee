"""The prediction store: segments, indexes, timings and their upkeep."""
