"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "trainer" / "ddp_trainer"
OPERATOR = REPOSITORY / "operator" / "ddp_operator"
MODULES = sorted(PACKAGE.rglob("*.py"))
ALL_MODULES = [*MODULES, *sorted(OPERATOR.rglob("*.py"))]
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
NAMES_THAT_SAY_NOTHING = re.compile(r"util|helper|common|base|misc|manager", re.IGNORECASE)

parametrize = pytest.mark.parametrize("module", ALL_MODULES, ids=lambda path: "/".join(path.relative_to(REPOSITORY).parts[2:]))


def tree(module):
    return ast.parse(module.read_text(encoding="utf-8"))


def uses_of_the_environment(module):
    """How the module touches the process's environment: the source of each expression around `os.environ` or `os.getenv`."""
    parsed = tree(module)
    names = {node.attr for node in ast.walk(parsed) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os"}
    found = [alias.name for node in ast.walk(parsed) if isinstance(node, ast.ImportFrom) and node.module == "os" for alias in node.names]
    if names & {"getenv", "environb", "putenv", "unsetenv"} or {"environ", "getenv", "environb"} & {*found}:
        return ["in another way than os.environ"]
    around = [node for node in ast.walk(parsed) if any(ast.unparse(child) == "os.environ" for child in ast.iter_child_nodes(node))]
    return sorted({ast.unparse(node) for node in around})


def test_the_environment_is_read_by_the_command_line_alone():
    allowed = {
        "cli.py": None,  # the one reader
        "resilience/zygote.py": ["os.environ.clear", "os.environ.update"],  # gives a forked child the environment it was started with
        "data/cache.py": ["os.environ.get"],  # XDG_CACHE_HOME, by which every program on a desktop finds the user's caches
    }
    found = {str(module.relative_to(PACKAGE)): uses for module in MODULES if (uses := uses_of_the_environment(module))}
    assert found.keys() == allowed.keys()
    assert all(uses is None or found[name] == uses for name, uses in allowed.items())
    assert (PACKAGE / "data" / "cache.py").read_text().count('os.environ.get("XDG_CACHE_HOME")') == 1


def test_the_operator_reads_the_environment_in_its_main_alone():
    found = [module.relative_to(OPERATOR).as_posix() for module in ALL_MODULES[len(MODULES) :] if uses_of_the_environment(module)]
    assert found == ["main.py"]


@parametrize
def test_every_module_says_what_it_is(module):
    said = ast.get_docstring(tree(module))
    assert said
    assert said.split("\n")[0].rstrip().endswith((".", "?", ":")) or "\n" in said


@parametrize
def test_a_file_is_named_after_what_it_handles(module):
    assert not NAMES_THAT_SAY_NOTHING.search(module.stem)


@parametrize
def test_a_class_is_named_after_what_it_is(module):
    classes = [node.name for node in ast.walk(tree(module)) if isinstance(node, ast.ClassDef)]
    assert not [name for name in classes if NAMES_THAT_SAY_NOTHING.search(name)]


def test_nothing_is_ever_unpickled_but_cifars_own_files():
    # those are read by an unpickler that knows arrays and nothing else: see the module
    loads = re.compile(r"^\s*(import|from) (pickle|cloudpickle|dill|shelve|marshal)\b|torch\.load\(|allow_pickle=True", re.MULTILINE)
    assert [module.name for module in MODULES if loads.search(module.read_text())] == ["cifar_pickles.py"]


def name_in_its_program(path):
    """What a file is imported as: tests are no packages, but a folder with a run.py is a program, with names of its own."""
    program = next((folder for folder in path.parents if (folder / "run.py").exists() and not any(folder.rglob("test_*.py"))), None)
    return (program, path.relative_to(program)) if program else path.name


def test_test_files_have_names_of_their_own():
    # two files of one name would be one module
    names = Counter(name_in_its_program(path) for path in TESTS if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
