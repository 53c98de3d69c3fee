"""Images × models × views → logits."""
