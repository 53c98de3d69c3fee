"""Writes each CSV of a folder again with polars: `python make_polars.py FOLDER OUT`."""

import sys
from pathlib import Path

import polars as pl

for path in sorted(Path(sys.argv[1]).glob("*.csv")):
    frame = pl.read_csv(path, schema_overrides={"id": pl.String})
    frame.write_csv(Path(sys.argv[2]) / f"{path.stem}.polars.csv")
