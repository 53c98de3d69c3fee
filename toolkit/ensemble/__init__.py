"""Logits → one answer: combined, judged by views, planned for a time, fused."""
