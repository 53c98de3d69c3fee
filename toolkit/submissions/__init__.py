"""A submission checked, written, kept and proved again."""
