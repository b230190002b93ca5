"""The nouns every layer shares: a Field is a column read, a Task a column learned, a Schema both."""

import operator
import re
from dataclasses import asdict, dataclass, fields, replace
from math import inf
from typing import Any, Literal, Self, TypeVar, cast, get_args

from polytask.errors import ConfigError, did_you_mean

T = TypeVar("T")

FieldKind = Literal["category", "number"]
Side = Literal["user", "item", "context"]
TaskKind = Literal["ranking", "regression", "binary"]
HeadKind = Literal["tower", "dot"]

_DEFAULT_LOSS: dict[TaskKind, str] = {"ranking": "bpr", "regression": "mse", "binary": "bce"}
_DEFAULT_METRICS: dict[TaskKind, tuple[str, ...]] = {
    "ranking": ("mrr", "mrr_first", "ndcg@10", "recall@10", "hit@10"),
    "regression": ("mse", "rmse", "mae"),
    "binary": ("auc", "logloss"),
}
_OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"^\s*(\w+)\s*(>=|<=|==|!=|>|<)\s*(-?\d+(?:\.\d+)?)\s*$")


@dataclass(frozen=True, slots=True)
class Field:
    """A column the model reads.

    ``kind``: ``category`` is embedded by value, ``number`` is standardized on train and scales a learned
    vector. ``side`` says whose property it is: the user's, the item's, or the interaction's own (context).
    """

    name: str
    kind: FieldKind = "category"
    side: Side = "context"

    def __post_init__(self) -> None:
        _member(f"field '{self.name}': kind", self.kind, get_args(FieldKind))
        _member(f"field '{self.name}': side", self.side, get_args(Side))


@dataclass(frozen=True, slots=True)
class Input:
    """A field as the model sees it: ``size`` embedding rows, row 0 for unknown (a number has one row)."""

    name: str
    kind: FieldKind
    side: Side
    size: int


@dataclass(frozen=True, slots=True)
class Condition:
    """``column operator number``, as in ``rating >= 4``: says which rows are positive."""

    column: str
    operator: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``text``; anything but one comparison with a number is a :class:`ConfigError`."""
        if not (match := _CONDITION.match(text)):
            raise ConfigError(
                f"positive = '{text}' is not understood; write column, operator, number, as in 'rating >= 4'"
            )
        return cls(match[1], match[2], float(match[3]))

    def holds(self, values: Any) -> Any:
        """Whether the condition holds for each of ``values``: an array or series of the column, element by element."""
        return _OPERATORS[self.operator](values, self.value)


@dataclass(frozen=True, slots=True)
class Task:
    """A column the model learns.

    ``ranking``: order the catalogue for a user; every row is a positive unless ``label`` or ``positive``
    narrows them. ``regression``: predict the value of ``label``. ``binary``: the probability that ``label``
    is 1, or that ``positive`` holds. ``head``: ``dot`` scores by an inner product of user and item (can be
    indexed), ``tower`` reads the body. ``bias`` adds one scalar per user and item to a dot head.
    ``negatives`` are drawn per positive row. ``range`` bounds the label; rows outside it are rejected.
    ``weight`` multiplies the loss; ``metrics`` start with the one that chooses the epoch.
    """

    name: str
    kind: TaskKind
    label: str | None = None
    loss: str = ""
    head: HeadKind = "tower"
    bias: bool = True
    positive: str | None = None
    negatives: int = 1
    range: tuple[float, float] | None = None
    weight: float = 1.0
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _member(f"task '{self.name}': kind", self.kind, get_args(TaskKind))
        _member(f"task '{self.name}': head", self.head, get_args(HeadKind))
        set_ = object.__setattr__
        set_(self, "loss", self.loss or _DEFAULT_LOSS[self.kind])
        set_(self, "metrics", tuple(self.metrics) or _DEFAULT_METRICS[self.kind])
        if self.range is not None:
            set_(self, "range", (float(self.range[0]), float(self.range[1])))
        if self.kind != "ranking" and self.column is None:
            raise ConfigError(f"task '{self.name}': a {self.kind} task needs label = \"column\"")
        if not 0 <= self.weight < inf or self.negatives < 1:
            raise ConfigError(f"task '{self.name}': weight must be >= 0 and finite, negatives >= 1")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ConfigError(f"task '{self.name}': range = {list(self.range)} is empty; write [lowest, highest]")

    @property
    def condition(self) -> Condition | None:
        """The parsed ``positive``, if there is one."""
        return Condition.parse(self.positive) if self.positive else None

    @property
    def column(self) -> str | None:
        """The column the label is read from, if any."""
        return self.condition.column if self.condition else self.label


@dataclass(frozen=True, slots=True)
class Schema:
    """What a data set holds: its fields, its tasks, and which columns name the user, the item and the time.

    ``user`` and ``item`` are category fields of their own side without being listed. Times are seconds.
    """

    tasks: tuple[Task, ...]
    fields: tuple[Field, ...] = ()
    user: str | None = None
    item: str | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "fields", tuple(self.fields))
        if not self.tasks:
            raise ConfigError("schema: no task; name at least one, as in Task('stars', 'regression', label='rating')")
        for kind, names in (("task", self.task_names), ("field", tuple(f.name for f in self.inputs))):
            if repeated := sorted({n for n in names if names.count(n) > 1}):
                raise ConfigError(f"schema: {kind} '{repeated[0]}' is named twice; names are unique")
        for task in self.tasks:
            if (task.kind == "ranking" or task.head == "dot") and not (self.user and self.item):
                raise ConfigError(f"task '{task.name}': a ranking task or dot head needs the user and item columns")
        labels = {t.column for t in self.tasks}
        if leaking := [f.name for f in self.inputs if f.name in labels]:
            raise ConfigError(f"field '{leaking[0]}' is also a label: the model would read its own answer; remove it")

    @property
    def inputs(self) -> tuple[Field, ...]:
        """Every field the model reads: user side first, then item side, then context."""
        own = [Field(self.user, "category", "user")] if self.user else []
        own += [Field(self.item, "category", "item")] if self.item else []
        every = [*own, *self.fields]
        return tuple(f for side in get_args(Side) for f in every if f.side == side)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(t.name for t in self.tasks)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the interactions table must have."""
        named = [self.user, self.item, self.time, *(f.name for f in self.fields if f.side == "context")]
        return tuple(dict.fromkeys(c for c in [*named, *(t.column for t in self.tasks)] if c))

    def task(self, name: str) -> Task:
        """The task called ``name``."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise ConfigError(did_you_mean("task", name, self.task_names))

    def only(self, *names: str) -> "Schema":
        """The same data with these tasks alone: the single-task baseline."""
        return replace(self, tasks=tuple(self.task(name) for name in names))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that :meth:`from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Build from plain values; an unknown key is a :class:`ConfigError`."""
        value = dict(value)
        value["tasks"] = tuple(_build(Task, "task", t) for t in value.get("tasks", ()))
        value["fields"] = tuple(_build(Field, "field", f) for f in value.get("fields", ()))
        return _build(cls, "schema", value)


def _build(cls: type[T], what: str, value: dict[str, Any]) -> T:
    known = {f.name for f in fields(cast(Any, cls))}
    for key in value:
        if key not in known:
            raise ConfigError(f"{what}: " + did_you_mean("key", key, known))
    try:
        return cls(**value)
    except TypeError as error:
        raise ConfigError(f"{what}: {error}") from None


def _member(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ConfigError(did_you_mean(what, given, known))
