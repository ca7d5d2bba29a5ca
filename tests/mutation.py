"""Mutation test of `klqlit.functional`: change one operator at a time and see whether a test notices.

    python tests/mutation.py           every kind of mutant
    python tests/mutation.py --signs   sign flips only
    python tests/mutation.py klq ppo   these modules only

Works on a temporary copy. Each mutant runs in a fork of this process, which has torch loaded already, against the test
file of the mutated module, the identities and the pitfalls. Shapes are not checked meanwhile: values must tell. Exits
with 1 if a mutant survives for which `EQUIVALENT` gives no reason.
"""

import argparse
import ast
import copy
import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; threads do not survive a fork

import pytest
import torch
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("src/klqlit/functional")
TESTS = Path("tests/functional")
SHARED_TESTS = ("test_identities.py", "test_pitfalls.py")
TIMEOUT = 60  # seconds, for a mutant that makes a solver run on
SIGN = "sign"

# (file, expression, mutant): why no test can tell the two apart.
EQUIVALENT: dict[tuple[str, str, str], str] = {}

OPERATORS: dict[type[ast.operator], tuple[str, type[ast.operator]]] = {
    ast.Add: (SIGN, ast.Sub),
    ast.Sub: (SIGN, ast.Add),
    ast.Mult: ("product", ast.Div),
    ast.Div: ("product", ast.Mult),
    ast.Pow: ("product", ast.Mult),
    ast.BitAnd: ("logic", ast.BitOr),
}
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
}
NAMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "amax": "amin", "all": "any"}


@dataclass
class Mutant:
    file: str
    line: int
    kind: str
    before: str
    after: str
    source: str

    @property
    def reason(self) -> str | None:
        return EQUIVALENT.get((self.file, self.before, self.after))


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Each mutation of one node, as its kind and the node to stand in its place."""
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            kind, other = OPERATORS[type(op)]
            yield kind, ast.BinOp(left, other(), right)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield SIGN, operand
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "logic", operand
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for place, op in enumerate(ops):
                for other_op in COMPARISONS.get(type(op), ()):
                    yield "comparison", ast.Compare(left, [*ops[:place], other_op(), *ops[place + 1 :]], comparators)
        case ast.Name(id=name) if name in NAMES:
            yield "extremum", ast.Name(NAMES[name], ast.Load())
        case ast.Attribute(value=value, attr=name) if name in NAMES:
            yield "extremum", ast.Attribute(value, NAMES[name], ast.Load())
        case ast.Call(func=func, args=args, keywords=keywords) if any(keyword.arg in NAMES for keyword in keywords):
            swapped = [ast.keyword(NAMES.get(k.arg or "", k.arg), k.value) for k in keywords]
            yield "bounds", ast.Call(func, args, swapped)
        case ast.Constant(value=float() as number) if number != 0:
            yield "constant", ast.Constant(2 * number)


class Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def mutants(path: Path) -> Iterator[Mutant]:
    tree = ast.parse(path.read_text())
    for place, node in enumerate(ast.walk(tree)):
        for choice in range(len(list(replacements(node)))):
            changed = copy.deepcopy(tree)
            old = list(ast.walk(changed))[place]
            kind, new = list(replacements(old))[choice]
            before, after, line = ast.unparse(old), ast.unparse(new), getattr(node, "lineno", 0)
            source = ast.unparse(ast.fix_missing_locations(Replace(old, new).visit(changed)))
            yield Mutant(path.name, line, kind, before, after, source)


def passes(workspace: Path, module: str, *, write_bytecode: bool) -> bool:
    """Whether the tests of one module pass, in a fork that finds the package in `workspace`."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(TIMEOUT)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os.chdir(workspace)
        sys.path.insert(0, str(workspace / "src"))
        # The tests' bytecode is kept; that of the package would outlive a mutation of equal length.
        sys.dont_write_bytecode = not write_bytecode
        files = [str(workspace / TESTS / name) for name in (f"test_{module}", *SHARED_TESTS)]
        status = int(pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", *files]))
        package = sys.modules.get("klqlit")
        if package is not None and not str(package.__file__).startswith(str(workspace)):
            status = 99
        os._exit(status)
    _, waited = os.waitpid(child, 0)
    if os.WIFSIGNALED(waited):
        return False
    status = os.WEXITSTATUS(waited)
    if status not in (0, 1, 2):  # passed, failed, or not even importable
        raise RuntimeError(f"running test_{module} ended with status {status}: no verdict on the mutant")
    return status == 0


def warm_up() -> None:
    """Load, once for all forks, what the tests make torch load late, and exempt it from garbage collection."""
    settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate])  # no shrinking
    settings.load_profile("mutants")
    torch.set_num_threads(1)
    torch.testing.assert_close(torch.zeros(1), torch.zeros(1))
    torch.optim.LBFGS([torch.zeros(1, requires_grad=True)])
    gc.freeze()


def run(kinds: set[str] | None, modules: set[str]) -> int:
    """Prints one line a mutant and a summary; returns the number of unexplained survivors."""
    warm_up()
    start, survivors, verdicts = time.monotonic(), 0, Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as directory:
        workspace = Path(directory).resolve()
        no_bytecode = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "src", workspace / "src", ignore=no_bytecode)
        shutil.copytree(ROOT / TESTS, workspace / TESTS, ignore=no_bytecode)
        (workspace / "pytest.ini").write_text("[pytest]\n")
        files = sorted(path for path in (workspace / PACKAGE).glob("*.py") if path.name != "__init__.py")
        if unknown := modules - {path.stem for path in files}:
            raise RuntimeError(f"{PACKAGE} has no modules {sorted(unknown)}")
        if modules:
            files = [path for path in files if path.stem in modules]
        for path in files:
            if not (workspace / TESTS / f"test_{path.name}").exists():
                raise RuntimeError(f"{TESTS}/test_{path.name} is missing: every module of {PACKAGE} has its test file")
            if not passes(workspace, path.name, write_bytecode=True):
                raise RuntimeError(f"test_{path.name}, the identities or the pitfalls fail without any mutation")
        for cache in (workspace / "src").rglob("__pycache__"):
            shutil.rmtree(cache)
        for path in files:
            original = path.read_text()
            for mutant in mutants(path):
                if kinds is not None and mutant.kind not in kinds:
                    continue
                path.write_text(mutant.source)
                survived = passes(workspace, path.name, write_bytecode=False)
                verdict = "killed" if not survived else "equivalent" if mutant.reason else "SURVIVED"
                survivors += verdict == "SURVIVED"
                verdicts[mutant.kind, verdict] += 1
                place = f"{mutant.file}:{mutant.line}"
                print(f"{verdict:10}  {mutant.kind:10}  {place:20}  {mutant.before}  ->  {mutant.after}", flush=True)
                if survived and mutant.reason:
                    print(f"{'':12}{mutant.reason}")
            path.write_text(original)
    print()
    for (kind, verdict), count in sorted(verdicts.items()):
        print(f"{kind:10}  {verdict:10}  {count:4}")
    print(f"{time.monotonic() - start:.0f} s")
    return survivors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Mutation test of klqlit.functional.")
    parser.add_argument("--signs", action="store_true", help="sign flips only")
    parser.add_argument("modules", nargs="*", help="modules to mutate; all of them by default")
    arguments = parser.parse_args()
    sys.exit(1 if run({SIGN} if arguments.signs else None, set(arguments.modules)) else 0)
