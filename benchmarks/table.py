"""Write what `results/` holds into the table of README.md, between its markers.

python benchmarks/table.py
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"


def main() -> None:
    """One row a claim, grouped by script."""
    results = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]
    results.sort(key=lambda result: (result["command"].split()[1], result["claim"]))
    rows = ["| claim | target | measured | command |", "|---|---|---|---|"]
    for result in results:
        missed = "" if result["reached"] else " (missed)"
        rows.append(
            f"| {result['claim']} | {result['target']} | {result['measured']}{missed} | `{result['command']}` |"
        )
    page = HERE / "README.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(rows) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
