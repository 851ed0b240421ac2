"""What code a result comes from, as part of the name under which it is kept."""

import ast
from pathlib import Path

from stages.harness.files import sha256_file, sha256_json

ROOT = Path(__file__).parent.parent.parent


def code_hash(module: str) -> str:
    """Hash a module and those of ours that it imports, all the way down."""
    found: dict[str, str] = {}
    waiting = [module]
    for module in waiting:
        path = ROOT / (module.replace(".", "/") + ".py")
        if module not in found and path.is_file():
            found[module] = sha256_file(path)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = (f"{node.module}.{alias.name}" for alias in node.names)
                    waiting += (n for n in (node.module, *names) if n.startswith("stages."))
    return sha256_json(found)
