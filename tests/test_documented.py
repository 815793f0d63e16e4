"Everything public has a docstring, types, and a comment beside each parameter"

import ast
import io
import tokenize
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
package = root / "dreamer4_nb"
UNFINISHED = ()  # rooms that need not be complete yet
modules = [
    path
    for path in sorted(package.rglob("*.py"))
    if path.name != "_modidx.py" and path.relative_to(package).parts[0] not in UNFINISHED
]
SPECIAL = ("__init__", "__call__")  # public in spite of their names
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def is_public(name):
    return not name.startswith("_") or name in SPECIAL


def comment_lines(source):
    "Numbers of the lines with a comment; whether it stands there alone."
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            comments[row] = not token.line[:column].strip()
    return comments


def decorators(node):
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def parameters(function, in_class):
    "All of them but `self` and `cls`."
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    if in_class and "staticmethod" not in decorators(function):
        positional = positional[1:]
    starred = [x for x in (arguments.vararg, arguments.kwarg) if x is not None]
    return [x for x in [*positional, *arguments.kwonlyargs, *starred] if x.arg[0] != "_"]


def end_line(parameter, function):
    "Line on which a parameter ends, its default included."
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    with_default = positional[len(positional) - len(arguments.defaults) :]
    pairs = list(zip(with_default, arguments.defaults, strict=True))
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    for other, default in pairs:
        if other is parameter and default is not None:
            return default.end_lineno
    return parameter.end_lineno


def has_comment(node, end, comments):
    "Whether a comment is beside a parameter or field, or alone on the line above."
    beside = any(comments.get(line) is False for line in range(node.lineno, end + 1))
    return beside or comments.get(node.lineno - 1, False)


def shares_line(parameter, function):
    "Whether a comment there could mean another parameter, or the result."
    arguments = function.args
    starred = [x for x in (arguments.vararg, arguments.kwarg) if x is not None]
    others = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *starred]
    lines = [other.lineno for other in others if other is not parameter]
    after = function.returns or function.body[0]
    return parameter.lineno in lines or end_line(parameter, function) >= after.lineno


def missing_in_function(function, name, comments, in_class):
    "What a public function or method lacks."
    accessors = (".setter", ".deleter", "overload")
    if any(decorator.endswith(accessors) for decorator in decorators(function)):
        return
    is_init = function.name == "__init__"
    if ast.get_docstring(function) is None and not is_init:
        yield f"{name}: docstring"
    if function.returns is None and not is_init:
        yield f"{name}: type of the result"
    for parameter in parameters(function, in_class):
        if parameter.annotation is None:
            yield f"{name}({parameter.arg}): type"
        commented = has_comment(parameter, end_line(parameter, function), comments)
        if not commented or shares_line(parameter, function):
            yield f"{name}({parameter.arg}): comment"


def has_fields(cls):
    "Whether the annotated names of a class are parameters of its constructor."
    bases = [ast.unparse(base) for base in cls.bases]
    return any("dataclass" in name for name in decorators(cls)) or "NamedTuple" in bases


def missing_in_class(cls, comments):
    "What a public class, its public methods and its fields lack."
    if ast.get_docstring(cls) is None:
        yield f"{cls.name}: docstring"
    for node in cls.body:
        if isinstance(node, FUNCTION) and is_public(node.name):
            yield from missing_in_function(node, f"{cls.name}.{node.name}", comments, True)
        if isinstance(node, ast.AnnAssign) and has_fields(cls) and is_public(node.target.id):
            if not has_comment(node, node.end_lineno, comments):
                yield f"{cls.name}.{node.target.id}: comment"


def missing(source):
    "What the public things of a module lack; nested functions are not public."
    comments = comment_lines(source)
    for node in ast.parse(source).body:
        if isinstance(node, FUNCTION) and is_public(node.name):
            yield from missing_in_function(node, node.name, comments, False)
        if isinstance(node, ast.ClassDef) and is_public(node.name):
            yield from missing_in_class(node, comments)


@pytest.mark.parametrize("path", modules, ids=lambda p: str(p.relative_to(root)))
def test_public_things_are_documented(path):
    assert list(missing(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source, lacks",
    [
        ('def f() -> int:\n    "Doc"\n', []),
        ("def _f(x):\n    pass\n", []),
        ("def f() -> int:\n    pass\n", ["f: docstring"]),
        ('def f():\n    "Doc"\n', ["f: type of the result"]),
        ('def f(\n    x,  # why\n) -> int:\n    "Doc"\n', ["f(x): type"]),
        ('def f(\n    x: int,\n) -> int:\n    "Doc"\n', ["f(x): comment"]),
        ('def f(\n    *x: int,\n) -> int:\n    "Doc"\n', ["f(x): comment"]),
        ('def f(\n    x: int,  # why\n) -> int:\n    "Doc"\n', []),
        ('def f(\n    # why\n    x: int,\n) -> int:\n    "Doc"\n', []),
        ('def f(x: int) -> int:  # why\n    "Doc"\n', ["f(x): comment"]),
        (
            'def f(\n    x: int, y: int,  # why\n) -> int:\n    "Doc"\n',
            ["f(x): comment", "f(y): comment"],
        ),
        (
            'class C:\n    "Doc"\n\n    def __init__(self, x):\n        pass\n',
            ["C.__init__(x): type", "C.__init__(x): comment"],
        ),
        (
            "class C:\n    def f(self) -> int:\n        pass\n",
            ["C: docstring", "C.f: docstring"],
        ),
        (
            '@dataclass\nclass C:\n    "Doc"\n\n    x: int\n    y: int  # why\n',
            ["C.x: comment"],
        ),
    ],
)
def test_what_is_missing_is_found(source, lacks):
    assert list(missing(source)) == lacks
