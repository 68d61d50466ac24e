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

Every interval in the package says 95 %. Here experiments whose truth is known were simulated {results["draws"]} times for each row, by `python -m benchmarks.statistics`, which wrote this page. The lowest coverage is {100 * least["covered"]:.1f} % ({least["what"]}, {least["setting"]}). Where rates are near 0 or 1 or runs are few, an interval that is never too short must often be too long, so that it holds the truth in more than 95 %. Not simulated are two bootstraps over prompts whose truth has no closed form: the area between two patching curves, and each layer's share of what writes a direction.

{markdown_table(["interval", "truth", "holds it in"], covered)}

A test at 5 % should see an effect where there is none in 5 % of cases at most, also when it is told of the best of many.

{markdown_table(["test", "nothing happens", "sees an effect in"], alarms)}
"""
