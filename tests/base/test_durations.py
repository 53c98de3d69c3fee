"""Spans of time."""

import pytest

from toolkit.base import durations
from toolkit.errors import DataError


@pytest.mark.parametrize(("text", "found"), [("8h30m", 30600), ("90s", 90), ("45m", 2700), ("1h1m1s", 3661)])
def test_spans_of_time(text, found):
    assert durations.seconds(text) == found


@pytest.mark.parametrize("text", ["", "8", "h", "8h30", "-1h", "1.5h"])
def test_what_is_no_span_of_time(text):
    with pytest.raises(DataError, match="no span of time"):
        durations.seconds(text)
