import ast
import math
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from polytask.errors import ConfigError
from polytask.recommend.mix import Mix
from polytask.schema import Schema, Task

TASKS = ("watch", "rating", "at least 4")
VALUES = {"watch": np.array([0.5, 0.25]), "rating": np.array([4.0, 1.0]), "at least 4": np.array([0.0, 1.0])}
SYMBOLS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
Tree = Any  # a number, a name, or (operator or function, *parts)


def fault(source: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Mix.parse(source, TASKS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "text", "scores"),
    [
        ("watch", "watch", [0.5, 0.25]),
        ("watch*rating**0.5", "watch * rating ** 0.5", [1.0, 0.25]),
        ("0.70*watch + .3*rating", "0.7 * watch + 0.3 * rating", [1.55, 0.475]),
        ("((watch)) - (1 - rating)", "watch - (1 - rating)", [3.5, 0.25]),
        ("watch - 1 - rating", "watch - 1 - rating", [-4.5, -1.75]),
        ("rating / 2 / 2 * watch", "rating / 2 / 2 * watch", [0.5, 0.0625]),
        ("2 ** rating ** watch", "2 ** rating ** watch", [4.0, 2.0]),
        ("(2 ** rating) ** watch", "(2 ** rating) ** watch", [4.0, 2**0.25]),
        ("-watch ** 2", "-watch ** 2", [-0.25, -0.0625]),
        ("(-watch) ** 2", "(-watch) ** 2", [0.25, 0.0625]),
        ("rating ** -1 + -watch", "rating ** -1 + -watch", [-0.25, 0.75]),
        ("`at least 4` + 1e1", "`at least 4` + 10", [10.0, 11.0]),
        ("\t`watch`\n *2.", "watch * 2", [1.0, 0.5]),
        ("max(watch, rating, 2) - min(rating, 2)", "max(watch, rating, 2) - min(rating, 2)", [2.0, 1.0]),
        ("log1p(exp(log(sqrt(abs(-rating)))) - 1)", "log1p(exp(log(sqrt(abs(-rating)))) - 1)", [math.log(2), 0.0]),
        ("log(`at least 4`)", "log(`at least 4`)", [-math.inf, 0.0]),
        ("1 / `at least 4`", "1 / `at least 4`", [-math.inf, 1.0]),
        ("`at least 4` / `at least 4`", "`at least 4` / `at least 4`", [-math.inf, 1.0]),
        ("(-rating) ** 0.5 * 0 - watch", "(-rating) ** 0.5 * 0 - watch", [-math.inf, -math.inf]),
        ("exp(2000 * watch) - watch", "exp(2000 * watch) - watch", [-math.inf, math.exp(500)]),
        ({"watch": 1.0, "rating": 0.2}, "watch + 0.2 * rating", [1.3, 0.45]),
        ({"watch": -1, "at least 4": -0.5, "rating": 0}, "-watch - 0.5 * `at least 4`", [-0.5, -0.75]),
        ({"rating": np.float32(-0.5)}, "-0.5 * rating", [-2.0, -0.5]),
    ],
)
def test_texts_and_scores(source: Any, text: str, scores: list[float]) -> None:
    mix = Mix.parse(source, TASKS)
    assert mix.text == text
    np.testing.assert_allclose(mix(VALUES), scores, rtol=1e-14)
    assert mix(VALUES).dtype == np.float64


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "watch * ratng",
            "mix, column 9: task 'ratng' is unknown. Did you mean 'rating'? Known: at least 4, rating, wat",
        ),
        ("`at least 3`", "mix, column 1: task 'at least 3' is unknown. Did you mean 'at least 4'?"),
        ("1 + lg(watch)", "mix, column 5: function 'lg' is unknown. Did you mean 'log'?"),
        ("watch rating", "mix, column 7: 'rating' is not expected here; write an operator"),
        ("2watch", "mix, column 2: 'watch' is not expected here; write an operator"),
        ("`watch`(2)", "mix, column 8: '(' is not expected here; write an operator"),
        ("watch +", "mix, column 8: the end is not expected here; write a number, a task"),
        ("", "mix, column 1: the end is not expected here; write a number, a task"),
        ("+watch", "mix, column 1: '+' is not expected here; write a number, a task"),
        ("watch * * 2", "mix, column 9: '*' is not expected here; write a number, a task"),
        ("(watch, rating)", "mix, column 7: ',' is not expected here; close the parenthesis"),
        ("max(watch", "mix, column 10: the end is not expected here; close max( with )"),
        ("max(watch)", "mix, column 1: max takes two arguments or more, not 1"),
        ("2*log(watch, 2)", "mix, column 3: log takes one argument, not 2"),
        ("log()", "mix, column 5: ')' is not expected here; write a number"),
        ("1e999 * watch", "mix, column 1: '1e999' is too large a number"),
        ("watch % 2", "mix, column 7: '%' is not understood"),
        ("watch.__class__", "mix, column 6: '.' is not understood"),
        ("1 + `watch", "mix, column 5: '`' is not understood; a quoted name ends with `"),
        ("\x1b[31mwatch", r"mix, column 1: '\x1b' is not understood"),
        ("`\x1b[31m\n\ud800`", r"mix, column 1: task '\x1b[31m\n\ud800' is unknown."),
        ("2 * 3", "mix: '2 * 3' names no task, so it orders nothing; name one of: watch, rating, at least 4"),
        ({"ratng": 1}, "mix: task 'ratng' is unknown. Did you mean 'rating'?"),
        ({"watch": math.nan}, "mix: the weight of 'watch' must be a finite number"),
        ({"watch": 10**400}, "mix: the weight of 'watch' must be a finite number"),
        ({"watch": "1"}, "mix: the weight of 'watch' must be a finite number"),
        ({"watch": True}, "mix: the weight of 'watch' must be a finite number"),
        ({"watch": 0.0}, "mix: no task has a weight other than 0"),
        ({}, "mix: no task has a weight other than 0"),
        (["watch"], "mix: give an expression, or a mapping from tasks to weights"),
    ],
)
def test_a_fault_is_told_with_its_place(source: Any, message: str) -> None:
    assert fault(source).startswith(message)


def test_limits_hold_on_both_sides() -> None:
    assert len(Mix.parse("watch" + " " * 495, TASKS).text) == 5
    assert fault("watch" + " " * 496) == "mix: 501 characters are more than 500; write it shorter"
    short = "+".join(["a"] * 125)
    assert len(Mix.parse(short, ["a"]).text) == 4 * 124 + 1
    with pytest.raises(ConfigError, match="mix: 997 characters are more than 500"):
        Mix.parse("+".join(["a"] * 250), ["a"])  # as it would be kept
    for opening, closing in (("(", ")"), ("-", ""), ("abs(", ")"), ("2**", "")):
        assert Mix.parse(opening * 32 + "watch" + closing * 32, TASKS).tasks == ("watch",)
        assert "more than 32 levels" in fault(opening * 33 + "watch" + closing * 33)


def test_names_are_quoted_where_they_are_no_plain_words() -> None:
    tasks = ["a`b", "`", "", "log", "größe", "1st", "x\ny"]
    mix = Mix.parse(dict.fromkeys(tasks, 1.0), tasks)
    assert mix.text == "`a``b` + ```` + `` + log + größe + `1st` + `x\ny`"
    assert Mix.parse(mix.text, tasks) == mix
    assert [Mix.single(t).tasks for t in tasks] == [(t,) for t in tasks]
    assert float(Mix.parse("log(log)", tasks)({"log": math.e})) == pytest.approx(1)
    with pytest.raises(ConfigError, match=r"Known: , 1st, `, a`b, größe, log, x\\ny$"):
        Mix.parse("y", tasks)


def test_a_mix_is_a_frozen_value_equal_by_its_text() -> None:
    one, same, other = (Mix.parse(s, TASKS) for s in ("rating*watch", "( rating )*watch", "watch*rating"))
    assert one == same and hash(one) == hash(same) and one != other
    assert one.tasks == other.tasks == ("watch", "rating")  # in the order of the schema
    with pytest.raises(FrozenInstanceError):
        one.text = "watch"  # type: ignore[misc]


def test_any_shape_is_fused_and_nothing_that_is_given_is_changed() -> None:
    values = {"watch": np.ones((2, 3, 4), dtype=np.float32), "rating": np.full((2, 3, 4), np.nan)}
    assert Mix.parse("watch + 1", TASKS)(values).tolist() == np.full((2, 3, 4), 2.0).tolist()
    assert Mix.parse("rating", TASKS)(values).tolist() == np.full((2, 3, 4), -np.inf).tolist()
    assert float(Mix.parse("watch / rating", TASKS)({"watch": 1.0, "rating": 4})) == 0.25
    assert np.isnan(values["rating"]).all()
    found = Mix.single("watch")(VALUES)
    found[:] = 0
    assert VALUES["watch"].tolist() == [0.5, 0.25]


def test_a_ranking_stands_for_its_softplus_and_the_others_for_themselves() -> None:
    tasks = (
        Task("watch", "ranking"),
        Task("rating", "regression", label="rating"),
        Task("like", "binary", label="like"),
    )
    schema = Schema(tasks, user="u", item="i")
    values = np.array([[0.0, -700.0, 800.0, math.log(3)], [1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 0.4]], dtype=np.float32)
    found = Mix.inputs(values, schema.task_names, schema)
    np.testing.assert_allclose(found["watch"], [math.log(2), math.exp(-700), 800, math.log(4)], rtol=1e-6)
    assert found["rating"].tolist() == [1, 2, 3, 4] and found["like"].tolist() == values[2].astype(float).tolist()
    assert {v.dtype for v in found.values()} == {np.dtype("float64")}
    order = Mix.inputs(np.array([[-40.0, -39.9, 0.0, 40.0, 40.1, 900.0, 901.0]]), ["watch"], schema)["watch"]
    assert (np.diff(order) > 0).all()  # a sigmoid has made one of the last four
    with pytest.raises(ValueError, match="shorter"):
        Mix.inputs(values[:2], schema.task_names, schema)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("watch + 0.2 * rating", [("watch", 0.5), ("0.2 * rating", 0.8)]),
        ("watch - (rating - 1)", [("watch", 0.5), ("-rating", -4.0), ("--1", 1.0)]),
        ("watch * rating ** 0.5", [("watch", math.log(0.5)), ("rating ** 0.5", math.log(2))]),
        ("2 * rating / watch", [("2", math.log(2)), ("rating", math.log(4)), ("1 / watch", math.log(2))]),
        ("watch * `at least 4`", [("watch * `at least 4`", 0.0)]),
        ("rating ** 0.5", [("rating ** 0.5", 2.0)]),
        ("watch + 1 / `at least 4`", [("watch", 0.5), ("1 / `at least 4`", -math.inf)]),
    ],
)
def test_parts_explain_a_score(source: str, parts: list[tuple[str, float]]) -> None:
    found = Mix.parse(source, TASKS).parts({t: v[0] for t, v in VALUES.items()})
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [number for _, number in found] == pytest.approx([number for _, number in parts])


def trees(*operators: str) -> st.SearchStrategy[Tree]:
    """Expressions over a, b and c with these operators, or all of them and functions."""
    leaves = st.sampled_from(["a", "b", "c"]) | st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.25, 1e-7, 1e20])
    names = operators or ("+", "-", "*", "/", "**")

    def grown(part: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        found = st.tuples(st.sampled_from(names), part, part)
        if operators:
            return found
        one = st.tuples(st.sampled_from(["neg", "log", "log1p", "exp", "sqrt", "abs"]), part)
        return found | one | st.tuples(st.sampled_from(["min", "max"]), part, part, part)

    return st.tuples(st.sampled_from(names), leaves, st.recursive(leaves, grown, max_leaves=6))


def source_of(tree: Tree) -> str:
    """The expression with every parenthesis."""
    if not isinstance(tree, tuple):
        return repr(tree) if isinstance(tree, float) else f" {tree} "
    operator, *parts = tree[0], *map(source_of, tree[1:])
    if operator == "neg":
        return f"(-{parts[0]})"
    return f"{operator}({','.join(parts)})" if operator.isalnum() else f"({parts[0]}{operator}{parts[1]})"


def as_python(text: str) -> Tree:
    """The tree that Python's own grammar gives the text."""

    def read(node: ast.expr) -> Tree:
        match node:
            case ast.Constant(value=float() | int() as value):
                return float(value)
            case ast.Name(id=name):
                return name
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return ("neg", read(operand))
            case ast.Call(func=ast.Name(id=name), args=args):
                return (name, *map(read, args))
            case ast.BinOp(left=left, op=op, right=right):
                return (SYMBOLS[type(op)], read(left), read(right))
        raise AssertionError(ast.dump(node))

    return read(ast.parse(text, mode="eval").body)


def naive(tree: Tree, values: dict[str, float], leaf: Iterator[float]) -> float:
    """The value by Python's floats, as IEEE 754 has it; ``leaf`` moves every number and name a little."""
    if not isinstance(tree, tuple):
        return float(values.get(tree, tree)) * next(leaf)
    operator, *parts = tree[0], *(naive(p, values, leaf) for p in tree[1:])
    a, b = parts[0], parts[-1]
    if any(math.isnan(p) for p in parts) and not (operator == "**" and (a == 1 or b == 0)):
        return math.nan
    try:
        if operator in ("min", "max"):
            return min(parts) if operator == "min" else max(parts)
        two = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}
        if operator in two:
            return two[operator]()
        return -a if operator == "neg" else math.pow(a, b) if operator == "**" else getattr(math, operator, abs)(a)
    except ZeroDivisionError:
        return math.nan if a == 0 else math.copysign(math.inf, a) * math.copysign(1, b)
    except OverflowError:
        return -math.inf if operator == "**" and a < 0 and b % 2 == 1 else math.inf
    except ValueError:  # a pole or outside the domain
        if operator == "**" and a == 0:
            return math.copysign(math.inf, a) if b % 2 == 1 else math.inf
        return -math.inf if (operator, a) in (("log", 0.0), ("log1p", -1.0)) else math.nan


@given(tree=trees())
@settings(max_examples=100)
def test_the_text_means_in_python_what_was_written_and_reads_back_the_same(tree: Tree) -> None:
    assume(isinstance(tree[1], str))
    mix = Mix.parse(source_of(tree), ["a", "b", "c"])
    assert as_python(mix.text) == tree
    again = Mix.parse(mix.text, ["a", "b", "c"])
    assert (again.text, again.root, again.tasks) == (mix.text, mix.root, mix.tasks)


@given(tree=trees(), rows=st.lists(st.tuples(*[st.sampled_from([-3.0, -1.0, 0.0, 0.3, 1.0, 2.5])] * 3), min_size=1))
@settings(max_examples=100)
def test_scores_are_those_of_a_loop_in_python(tree: Tree, rows: list[tuple[float, ...]]) -> None:
    assume(isinstance(tree[1], str))
    mix = Mix.parse(source_of(tree), ["a", "b", "c"])
    columns = np.array(rows).T
    found = mix(dict(zip("abc", columns, strict=True)))
    for row, score in zip(rows, found.tolist(), strict=True):
        values = dict(zip("abc", row, strict=True))
        wanted = naive(tree, values, iter(lambda: 1.0, 0))
        moved = naive(tree, values, (1 + 1e-10 * n for n in count()))
        if math.isfinite(wanted) and wanted == pytest.approx(moved, rel=1e-6, abs=0):  # no difference of equal numbers
            assert score == pytest.approx(wanted, rel=1e-7, abs=0)
        elif not math.isfinite(wanted) and not math.isfinite(moved):
            assert score == -math.inf
        assert not math.isnan(score) and score < math.inf


@given(tree=trees("+", "-") | trees("*", "/"), row=st.tuples(*[st.sampled_from([0.25, 1.0, 3.0])] * 3))
def test_parts_add_up(tree: Tree, row: tuple[float, ...]) -> None:
    assume(isinstance(tree[1], str) and "0.0" not in source_of(tree))
    mix = Mix.parse(source_of(tree), ["a", "b", "c"])
    values = dict(zip("abc", row, strict=True))
    score, parts = float(mix(values)), mix.parts(values)
    total = math.fsum(number for _, number in parts)
    largest = max(abs(number) for _, number in parts)
    assert total == pytest.approx(score if tree[0] in "+-" else math.log(score), rel=1e-9, abs=1e-9 * largest)


ALPHABET = st.sampled_from(
    [*"()+-*/,`. \n", "**", "watch", "rating", "`at least 4`", "log", "min(", "exp(", "2", "1e3"]
)


@given(text=st.text(max_size=40) | st.lists(ALPHABET, max_size=25).map("".join))
@settings(max_examples=200)
def test_any_text_is_a_mix_or_one_line(text: str) -> None:
    try:
        mix = Mix.parse(text, TASKS)
    except ConfigError as error:
        assert str(error).isprintable()
        return
    assert Mix.parse(mix.text, TASKS).text == mix.text
    assert Mix.parse(mix.text, TASKS)(VALUES).tolist() == mix(VALUES).tolist()
