"""The written conventions of the code: legends of shape letters, one vocabulary, reasons beside exceptions."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ["pathmoe", "kernels", "eval", "tests"]

SHAPE_SUFFIX = re.compile(r"^\w*[a-z]\w*_([A-Z0-9]*[A-Z][A-Z0-9]*)$")
LEGEND = "# Shapes:"

# The word that this project does not define: the word that it does.
VOCABULARY = {
    "d_ff": "moe_intermediate_size",
    "d_model": "hidden_size",
    "expert_idx": "expert_ids",
    "expert_indices": "expert_ids",
    "gate_logits": "router_logits",
    "gating": "routing",
    "n_embd": "hidden_size",
    "n_experts": "num_experts",
    "n_layers": "num_hidden_layers",
    "router_probs": "scores",
    "routing_probs": "scores",
    "top_k": "num_experts_per_tok",
    "topk": "num_experts_per_tok",
    "topk_ids": "expert_ids",
    "topk_weights": "expert_weights",
}

# `<figure>_null`, with the kind of null where there are several and what of it; see eval/README.md.
NULL_NAME = re.compile(r"(\w+_)?null(_(uniform|loads|permuted|matched))?(_(ratio|mean|std|highest|low|high))?(_means)?")
LIKE_A_NULL = re.compile(r"null|chance|uniform")

# `# TODO(#12): ...`, `# TODO(torch 2.14): ...`: who reads it can tell when it is due.
ANCHORED_TODO = re.compile(r"(TODO|FIXME)\((#\d+|[\w-]+ v?\d[\w.]*)\): \S")
# An exception to the lint or the types names its rule, and a second comment on the line gives the reason.
EXPLAINED_EXCEPTION = re.compile(r"#\s*(noqa: [A-Z]+\d+(, ?[A-Z]+\d+)*|type: ignore\[[\w-]+(, ?[\w-]+)*\])\s+#\s*\w+")


def _files() -> list[Path]:
    return [ROOT / "train.py", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]


def _comments(source: str) -> list[tokenize.TokenInfo]:
    return [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT]


def defined_names(source: str) -> set[str]:
    """Names that the code chooses itself: variables, attributes and fields it sets, arguments, functions, classes."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


def legend_letters(source: str) -> set[str]:
    """Letters that the legend explains: a comment above the first definition that starts with `# Shapes:`, with the
    comment lines right below it."""
    body = ast.parse(source).body
    definitions = [node.lineno for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    first_definition = min(definitions, default=len(source.splitlines()) + 1)
    text, last_line = "", -1
    for comment in _comments(source):
        line = comment.start[0]
        if line < first_definition and (comment.string.startswith(LEGEND) or (text and line == last_line + 1)):
            text, last_line = text + comment.string, line
    return set(re.findall(r"\b[A-Z]\b", text.replace(LEGEND, "")))


def unexplained_shapes(source: str) -> dict[str, set[str]]:
    """Names with a shape suffix whose letters the legend does not explain."""
    explained = legend_letters(source)
    suffixes = {name: match[1] for name in defined_names(source) if (match := SHAPE_SUFFIX.match(name))}
    missing = {name: {letter for letter in suffix if letter.isalpha()} - explained for name, suffix in suffixes.items()}
    return {name: letters for name, letters in missing.items() if letters}


def misnamed_nulls(source: str) -> set[str]:
    """Fields of classes that say what a figure is by chance, and are not called so."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    fields = {
        node.target.id
        for of_class in classes
        for node in of_class.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return {name for name in fields if LIKE_A_NULL.search(name) and not NULL_NAME.fullmatch(name)}


def loose_ends(source: str) -> list[str]:
    """Comments that put something off without saying until when, or make an exception without saying why."""
    comments = [comment.string for comment in _comments(source)]
    todos = [c for c in comments if re.search(r"\b(TODO|FIXME)\b", c) and not ANCHORED_TODO.search(c)]
    exceptions = [
        c for c in comments if re.search(r"#\s*(noqa|type:\s*ignore)", c) and not EXPLAINED_EXCEPTION.search(c)
    ]
    return todos + exceptions


def test_shape_suffixes_are_explained_at_the_top_of_their_file() -> None:
    found = {path: unexplained_shapes(path.read_text()) for path in _files()}
    lines = [
        f"{path.relative_to(ROOT)}: its '{LEGEND}' lacks {sorted(set().union(*names.values()))} of {sorted(names)}"
        for path, names in found.items()
        if names
    ]
    assert not lines, "\n".join(lines)


def test_one_word_for_one_thing() -> None:
    lines = [
        f"{path.relative_to(ROOT)}: {word}, here called {VOCABULARY[word]}"
        for path in _files()
        for word in sorted(VOCABULARY.keys() & {re.sub(r"_[A-Z0-9]+$", "", n) for n in defined_names(path.read_text())})
    ]
    assert not lines, "\n".join(lines)


def test_nulls_of_results_have_one_scheme_of_names() -> None:
    files = sorted((ROOT / "eval" / "pathmoe_eval").rglob("*.py"))
    lines = [f"{path.relative_to(ROOT)}: {name}" for path in files for name in misnamed_nulls(path.read_text())]
    assert not lines, "\n".join(lines)


def test_exceptions_and_postponements_give_their_reason() -> None:
    lines = [f"{path.relative_to(ROOT)}: {comment}" for path in _files() for comment in loose_ends(path.read_text())]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(
    ("source", "unexplained"),
    [
        ("x_TD = 1", {"x_TD": {"T", "D"}}),
        ("# Shapes: T tokens.\nx_TD = 1", {"x_TD": {"D"}}),
        ("# Shapes: T tokens,\n# D width.\nx_TD = 1", {}),
        ("def f(x_T): ...\n# Shapes: T tokens.", {"x_T": {"T"}}),
        ("class A:\n    logits_TE: int", {"logits_TE": {"T", "E"}}),
        ("self.w_2FD = 1", {"w_2FD": {"F", "D"}}),
        ("MAX_LINES = 1\nx = y.w_TD\n_T = 2", {}),
    ],
)
def test_an_unexplained_shape_is_seen(source: str, unexplained: dict[str, set[str]]) -> None:
    assert unexplained_shapes(source) == unexplained


@pytest.mark.parametrize(
    ("name", "is_misnamed"),
    [
        ("entropy_bits", False),
        ("entropy_bits_null", False),
        ("jaccard_null_loads_ratio_means", False),
        ("null_mean", False),
        ("null_bits", True),
        ("entropy_bits_uniform", True),
        ("agreement_by_chance", True),
    ],
)
def test_a_misnamed_null_is_seen(name: str, is_misnamed: bool) -> None:
    assert misnamed_nulls(f"class A:\n    {name}: float\n") == ({name} if is_misnamed else set())


@pytest.mark.parametrize(
    ("comment", "is_loose"),
    [
        ("# TODO: tidy up", True),
        ("# TODO(#12): tidy up", False),
        ("# FIXME(torch 2.14): drop the copy", False),
        ("# noqa", True),
        ("# noqa: E402", True),
        ("# noqa: E402  # the environment is set first", False),
        ("# type: ignore[arg-type]", True),
        ("# type: ignore  # their stub is wrong", True),
        ("# type: ignore[arg-type]  # their stub is wrong", False),
    ],
)
def test_a_loose_end_is_seen(comment: str, is_loose: bool) -> None:
    assert bool(loose_ends(f"x = 1  {comment}\n")) == is_loose
