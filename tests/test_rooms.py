"""The rooms of the package (CONTRIBUTING.md): imports go one way, without a circle; stages stand alone."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import segshift

ROOT = Path(segshift.__file__).parent
ROOMS = (
    *(
        "__main__",
        "commands",
        "arguments",
        "recipes",
        "stages",
        "town",
        "page",
        "engine",
        "predictor",
        "training",
    ),
    *("scoring", "methods", "generators", "networks", "outputs", "data", "execution", "config", "records"),
    *("hub", "users_code", "settings", "runs"),
)
"""From top to bottom: a room imports from lower ones alone."""
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
}


def room(module: str) -> str:
    """Where a module stands; settings of methods and networks stand with the configuration that they make."""
    settings = module in ("methods", "methods.spec", "networks.options") or (
        FILES[module].name == "__init__.py" and FILES[module].parent.parent == ROOT / "methods"
    )
    return "config" if settings else module.split(".")[0]


def imports(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Every module of segshift's own that is imported, and whether inside a function; not those for types."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        assert not isinstance(node, ast.ImportFrom) or not node.level, "a relative import"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("segshift"):
            home = node.module.removeprefix("segshift").removeprefix(".")
            for one in node.names:
                inner = f"{home}.{one.name}".removeprefix(".")
                yield (inner if inner in FILES else home), lazy
        yield from imports(node, lazy or isinstance(node, ast.FunctionDef))


IMPORTS = {name: list(imports(ast.parse(file.read_text()))) for name, file in FILES.items()}


def test_imports_go_one_way():
    assert ("training.loop", False) in IMPORTS["stages.train"]
    assert ("stages.train", True) in IMPORTS["commands"]
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other, lazy in others
        if ROOMS.index(room(other)) < ROOMS.index(room(name))
        and not (lazy and room(name) == "config")  # a method's settings import it when it is built
    ]
    assert not wrong


def test_there_is_no_circle():
    graph = {name: {o for o, lazy in others if not lazy} - {name} for name, others in IMPORTS.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_estimate_alone_is_made_of_other_stages():
    inside = {
        name for name, others in IMPORTS.items() for o, _ in others if "stages." in o and "stages." in name
    }
    assert inside == {"stages.estimate"}
