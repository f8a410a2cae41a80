"""Tests the text of table cells and of Markdown tables."""

from benchmarks.formatting import markdown_table, mean_and_range, median_and_range


def test_the_median_is_followed_by_the_range():
    assert median_and_range([3000.0, 1000.0, 1500.0]) == "1,500 (1,000 to 3,000)"
    assert median_and_range([2.0, 2.0], ".1f") == "2.0"
    assert median_and_range([None, None], limit=50_000) == "> 50,000"


def test_the_mean_is_followed_by_the_range():
    assert mean_and_range([1.0, 2.0, 6.0], ".1f") == "3.0 (1.0 to 6.0)"
    assert mean_and_range([-1.0, 1.5], "+.1f") == "+0.2 (-1.0 to +1.5)"


def test_a_table_has_a_line_of_heads_and_a_line_per_row():
    assert markdown_table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
