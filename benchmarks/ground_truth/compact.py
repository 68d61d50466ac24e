"""Results of many cells as JSON that stays readable and small."""

from __future__ import annotations

import json
from typing import Any


def compact(results: dict[str, Any]) -> str:
    """JSON in which what stands three levels below ``members`` has a line of its own."""
    rows: list[str] = []

    def shortened(value: Any, depth: int) -> Any:
        if depth == 0 or not isinstance(value, dict):
            rows.append(json.dumps(value, ensure_ascii=False))
            return f"@{len(rows) - 1}@"
        return {key: shortened(one, depth - 1) for key, one in value.items()}

    slim = {**results, "members": shortened(results["members"], 3)}
    text = json.dumps(slim, indent=1, ensure_ascii=False)
    for i, row in enumerate(rows):
        text = text.replace(f'"@{i}@"', row, 1)
    return text + "\n"
