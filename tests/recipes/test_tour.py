"""The tour runs from top to bottom as the notebook that a user makes of it."""

from pathlib import Path

import pytest

TOUR = Path(__file__).parents[2] / "recipes" / "tour.py"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook machinery itself
def test_the_tour_runs(tmp_path, quick_processes):
    import jupytext
    import nbclient

    book = jupytext.read(TOUR)
    assert sum(cell.cell_type == "code" for cell in book.cells) > 10
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    tables = [data["text/html"] for data in shown if "text/html" in data]
    assert len(tables) >= 4  # the split, a card, the out-of-fold table, the predictions
    assert any("image/png" in data for data in shown)
    said = "".join(output.get("text", "") for cell in book.cells if cell.cell_type == "code" for output in cell.outputs)
    assert "then 0" in said  # nothing is computed twice
    accuracy = float(said.split("out of fold: ")[1].split()[0])
    assert accuracy > 0.9
