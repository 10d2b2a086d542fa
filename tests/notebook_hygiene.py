"""Check that committed notebooks are what readers should get: no outputs, small cells, prose (`make lint` runs this)."""

import json
import sys
from pathlib import Path

LONGEST = 15  # non-empty lines of a code cell


def problems_of(path: Path) -> list[str]:
    """Return what is wrong with a notebook, empty when nothing is."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    found = []
    if any(cell.get("outputs") or cell.get("execution_count") for cell in code):
        found.append("has outputs; strip them (Edit > Clear Outputs of All Cells)")
    for cell in code:
        lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
        if len(lines) > LONGEST:
            found.append(f"has a code cell of {len(lines)} lines, beginning {lines[0]!r}")
        if any(line.startswith(("def ", "class ")) for line in lines):
            found.append(f"defines something: {lines[0]!r}; it belongs into the package")
    if len(cells) - len(code) < len(code):
        found.append(f"has {len(cells) - len(code)} text cells for {len(code)} code cells")
    if sum("parameters" in cell["metadata"].get("tags", []) for cell in code) != 1:
        found.append("needs one cell tagged `parameters`")
    return found


def main() -> int:
    """Check the notebooks named on the command line; 1 when one has a problem."""
    bad = [f"{name}: {problem}" for name in sys.argv[1:] for problem in problems_of(Path(name))]
    print("\n".join(bad), file=sys.stderr, end="\n" if bad else "")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
