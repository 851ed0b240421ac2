"""Which files of ours a module imports, directly and through others."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def module_file(name: str) -> Path | None:
    """Find the file of one of our modules; None for packages and for modules of others."""
    path = ROOT / (name.replace(".", "/") + ".py")
    return path if name.startswith(("stages.", "models.base.")) and path.is_file() else None


def direct_imports(path: Path) -> set[Path]:
    """List the files of ours that a file imports, for types alone too: they tell what it uses."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {file for name in names if (file := module_file(name))}
    return found


def import_closure(path: Path) -> set[Path]:
    """List a file and all files of ours that it needs."""
    closure, waiting = set(), [path]
    while waiting:
        file = waiting.pop()
        if file not in closure:
            closure.add(file)
            waiting += direct_imports(file)
    return closure
