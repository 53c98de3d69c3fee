"""One competition on disk: competition.toml, its tables, rows and split."""
