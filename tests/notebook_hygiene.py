"""Check that committed notebooks are what readers should get: no outputs, small cells, prose (`make lint` runs this)."""

import ast
import json
import re
import sys
from pathlib import Path

LONGEST = 15  # non-empty lines of a code cell
GLUED = re.compile(r"#+\w")  # what some renderers take for a heading


class _Names(ast.NodeVisitor):
    """The names that a cell takes from other cells, and those that it assigns, statement by statement."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.assigned: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.assigned.add(node.id)
        elif node.id not in self.assigned:
            self.taken.add(node.id)

    def visit_Assign(self, node: ast.Assign) -> None:
        for part in (node.value, *node.targets):
            self.visit(part)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.taken |= {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)} - self.assigned
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        for part in (node.iter, node.target, *node.body, *node.orelse):
            self.visit(part)

    def visit_comprehension(self, node: ast.AST) -> None:
        inner = _Names()
        for part in getattr(node, "generators", []):
            for field in (part.iter, part.target, *part.ifs):
                inner.visit(field)
        own = set(inner.assigned)  # these names live in the comprehension only
        for field in ("key", "value", "elt", "body"):
            if hasattr(node, field):
                inner.visit(getattr(node, field))
        if isinstance(node, ast.Lambda):
            inner.taken -= {a.arg for a in node.args.args}
        self.taken |= inner.taken - self.assigned
        self.assigned |= inner.assigned - own

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_comprehension
    visit_Lambda = visit_comprehension


def rebound_names(sources: list[str]) -> list[str]:
    """Return what in these code cells depends on the order in which they were run by hand.

    That is each name that several cells assign and that a cell takes from another one: run one of them again, and the
    name has another meaning.
    """
    cells = []
    for source in sources:
        names = _Names()
        names.visit(ast.parse(source))
        cells.append(names)
    found = []
    for name in sorted(set().union(*(cell.assigned for cell in cells))):
        if sum(name in cell.assigned for cell in cells) > 1 and any(name in cell.taken for cell in cells):
            found.append(name)
    return found


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
    for name in rebound_names(["".join(cell["source"]) for cell in code]):
        found.append(f"assigns {name!r} in several cells and takes it from one of them: use a second name")
    if cells[0]["cell_type"] != "markdown":
        found.append("does not open with prose")
    for text in ("".join(cell["source"]).strip() for cell in cells if cell["cell_type"] == "markdown"):
        if text.startswith("#") and "\n" not in text:
            found.append(f"has a section that does not open with prose: {text!r}")
        found += [f"has a line that looks like a heading: {line!r}" for line in text.split("\n") if GLUED.match(line)]
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
