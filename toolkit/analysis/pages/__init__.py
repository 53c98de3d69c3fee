"""Pages that open offline: what the data are, what the ensemble does and why."""
