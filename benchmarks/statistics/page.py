"""The page on intervals: every number in it comes from the results file."""
# ruff: noqa: E501  sentences of the page keep its line breaks

from __future__ import annotations

from typing import Any

from benchmarks.markdown import markdown_table


def render(results: dict[str, Any]) -> str:
    covered = [[row["what"], row["setting"], f"{100 * row['covered']:.1f} %"] for row in results["coverage"]]
    alarms = [
        [row["what"], row["setting"], f"{100 * row['alarms']:.1f} % of {row['draws']}"]
        for row in results["false_alarms"]
    ]
    least = min(results["coverage"], key=lambda row: row["covered"])
    return f"""# How often the intervals are right

Every interval in the package is a 95 % interval. For each row, experiments with a known true value were simulated {results["draws"]} times, by `python -m benchmarks.statistics`, which wrote this page; the last column is how often the interval contained it. The lowest coverage is {100 * least["covered"]:.1f} % ({least["what"]}, {least["setting"]}). Near rates of 0 or 1, or with few runs, an interval that is never too short must often be too long, and so contains the true value in more than 95 % of cases. Not simulated are two bootstraps over prompts whose true value has no closed form: the area between two patching curves, and each layer's share of what writes a direction.

{markdown_table(["interval", "experiment", "contains the true value in"], covered)}

A test at 5 % should find an effect where there is none in at most 5 % of cases, even if it is applied to the best of many.

{markdown_table(["test", "experiment without an effect", "finds one in"], alarms)}
"""
