"""Plant bugs: every small edit of a kernel's source by a handful of operators, one at a time."""

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod, ast.Mod: ast.FloorDiv,
}  # fmt: skip
EXTREMES = {"max": "min", "min": "max", "maximum": "minimum", "minimum": "maximum"}
OF_THE_GRID = ("program_id", "num_programs")
FIXED = ("arange", *OF_THE_GRID)
POSITION_OF_MASK = {"load": 1, "store": 2}


class Mutant(NamedTuple):
    """A source with one bug planted."""

    function: str
    operator: str
    before: str
    after: str
    line: str
    """First line of the statement that is edited, as it was."""
    number: int
    """From the second edit of a function on that reads the same."""
    source: str

    @property
    def name(self) -> str:
        """Unique among a file's mutants; it outlives all changes but of what is edited."""
        again = f" ({self.number})" if self.number > 1 else ""
        return f"{self.function}: {self.before} => {self.after}{again}"


def _called(node: ast.AST) -> str:
    """Last name of what is called; nothing for what is no call."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _is_axis(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and node.arg == "axis" and isinstance(node.value, ast.Constant)


def _is_length(node: ast.AST) -> bool:
    """Whether it is a matrix's number of rows or of columns."""
    of_shape = isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
    return of_shape and isinstance(node.slice, ast.Constant) and node.slice.value in (0, 1)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _with_argument(call: ast.Call, position: int, argument: ast.expr) -> ast.AST:
    return _with(call, args=[*call.args[:position], argument, *call.args[position + 1 :]])


def _minus_one(node: ast.expr) -> ast.expr:
    return ast.BinOp(node, ast.Sub(), ast.Constant(1))


def bounds(node: ast.AST) -> Iterator[ast.AST]:
    """Off by one: a comparison, the end of a range, a division that should round up."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield _with(node, ops=[COMPARISONS[type(node.ops[0])](), *node.ops[1:]])
    if isinstance(node, ast.Call) and _called(node) == "range":
        end = min(1, len(node.args) - 1)
        yield _with_argument(node, end, _minus_one(node.args[end]))
    if isinstance(node, ast.Call) and _called(node) == "cdiv":
        yield ast.BinOp(node.args[0], ast.FloorDiv(), node.args[1])


def constants(node: ast.AST) -> Iterator[ast.AST]:
    """A number one higher; the index of `tl.arange` one higher."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield ast.Constant(node.value + 1)
    if _called(node) == "arange":
        yield ast.BinOp(node, ast.Add(), ast.Constant(1))


def arithmetic(node: ast.AST) -> Iterator[ast.AST]:
    """Another operator: plus and minus, times and plus, the quotient and the rest."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield _with(node, op=ARITHMETIC[type(node.op)]())


def terms(node: ast.AST) -> Iterator[ast.AST]:
    """A minus sign dropped, or a one that is added or subtracted."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand
    by_one = isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant) and node.right.value == 1
    if by_one and isinstance(node.op, ast.Add | ast.Sub):
        yield node.left


def masks(node: ast.AST) -> Iterator[ast.AST]:
    """The mask of a load or a store dropped, or one of two conditions."""
    if isinstance(node, ast.Call) and len(node.args) > (position := POSITION_OF_MASK.get(_called(node), 99)):
        yield _with(node, args=node.args[:position])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        yield from (node.left, node.right)
    if isinstance(node, ast.BoolOp):
        yield from node.values


def axes(node: ast.AST) -> Iterator[ast.AST]:
    """The other axis, of a reduction or of the grid."""
    if _is_axis(node):
        yield _with(node, value=ast.Constant(1 - node.value.value))
    if isinstance(node, ast.Call) and _called(node) in OF_THE_GRID:
        yield _with_argument(node, 0, ast.Constant(1 - node.args[0].value))


def indices(node: ast.AST) -> Iterator[ast.AST]:
    """Row and column swapped: in `base + row * width + column`, and in the shape of a matrix."""
    if _is_length(node):
        yield _with(node, slice=ast.Constant(1 - node.slice.value))
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)):
        return
    base, product = None, node.left
    if isinstance(product, ast.BinOp) and isinstance(product.op, ast.Add):
        base, product = product.left, product.right
    if isinstance(product, ast.BinOp) and isinstance(product.op, ast.Mult):
        swapped: ast.expr = ast.BinOp(node.right, ast.Mult(), product.right)
        swapped = swapped if base is None else ast.BinOp(base, ast.Add(), swapped)
        yield ast.BinOp(swapped, ast.Add(), product.left)


def branches(node: ast.AST) -> Iterator[ast.AST]:
    """The branches of a condition swapped, and of a minimum and a maximum."""
    if isinstance(node, ast.Call) and _called(node) == "where":
        yield _with(node, args=[node.args[0], node.args[2], node.args[1]])
    if isinstance(node, ast.IfExp):
        yield _with(node, body=node.orelse, orelse=node.body)
    if isinstance(node, ast.If):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Call) and (other := EXTREMES.get(_called(node))):
        func = _with(node.func, **{"attr" if isinstance(node.func, ast.Attribute) else "id": other})
        yield _with(node, func=func)


OPERATORS: dict[str, Callable[[ast.AST], Iterator[ast.AST]]] = {
    "bound": bounds,
    "constant": constants,
    "arithmetic": arithmetic,
    "term": terms,
    "mask": masks,
    "axis": axes,
    "index": indices,
    "branch": branches,
}
STATEMENT = "statement"
DROPPED = "A statement dropped: a call, an update, or a variable that is set once more."


def _statements(function: ast.FunctionDef) -> Iterator[ast.stmt]:
    """Those within, in their order, without the docstring."""
    for statement in ast.walk(function):
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if isinstance(statement, ast.stmt) and statement is not function and not is_docstring:
            yield statement


def _can_go(statement: ast.stmt, assigned: set[str]) -> bool:
    """Whether what is left can still run without it."""
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id in assigned
    return isinstance(statement, ast.AugAssign | ast.Expr)


def _expressions(statement: ast.stmt) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Nodes of a statement but those of statements within it, each with the one above it."""
    waiting: list[tuple[ast.AST, ast.AST]] = [(statement, statement)]
    while waiting:
        node, above = waiting.pop(0)
        yield node, above
        # An index of another length fits nowhere, and there is no third axis: the compiler would say so.
        if isinstance(node, ast.arguments) or _called(node) in FIXED or _is_axis(node) or _is_length(node):
            continue
        skipped = {id(statement.annotation)} if isinstance(statement, ast.AnnAssign) else set()
        children = [child for child in ast.iter_child_nodes(node) if id(child) not in skipped]
        waiting += [(child, node) for child in children if not isinstance(child, ast.stmt)]


def _replaced(around: ast.AST, node: ast.AST, replacement: ast.AST) -> str:
    # A copy takes what its memo holds for a node that it comes to.
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(around, {id(node): replacement})))


def _edits(function: ast.FunctionDef) -> Iterator[tuple[ast.stmt, str, ast.AST, ast.AST, ast.AST]]:
    """Statement, operator, node, what replaces it, and the smallest node around it that says what it is."""
    assigned = {argument.arg for argument in function.args.args}
    for statement in sorted(_statements(function), key=lambda statement: statement.lineno):
        for node, above in _expressions(statement):
            for operator, mutate in OPERATORS.items():
                for replacement in mutate(node):
                    shown = above if isinstance(node, ast.Constant | ast.keyword) else node
                    yield statement, operator, node, replacement, shown
        if _can_go(statement, assigned):
            yield statement, STATEMENT, statement, ast.Pass(), statement
        stored = (node for node, _ in _expressions(statement) if isinstance(node, ast.Name))
        assigned |= {name.id for name in stored if isinstance(name.ctx, ast.Store)}


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a module's functions, in the order of the source; no two of them are alike."""
    body = ast.parse(source).body
    texts = [ast.unparse(node) for node in body]
    made, numbers = [], Counter[tuple[str, str, str]]()
    for i, function in enumerate(body):
        if not isinstance(function, ast.FunctionDef):
            continue
        seen = {texts[i]}
        for statement, operator, node, replacement, shown in _edits(function):
            mutated = _replaced(function, node, replacement)
            if mutated in seen:
                continue
            seen.add(mutated)
            before, after = (text.splitlines()[0] for text in (ast.unparse(shown), _replaced(shown, node, replacement)))
            key = (function.name, before, after)
            numbers[key] += 1
            line = ast.unparse(statement).splitlines()[0]
            whole = "\n".join([*texts[:i], mutated, *texts[i + 1 :]]) + "\n"
            made.append(Mutant(function.name, operator, before, after, line, numbers[key], whole))
    return made
