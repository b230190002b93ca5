"""The nouns every layer shares: a Field is a column read, a Task a column learned, a Schema both."""

import operator
import re
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from typing import Any, Literal, Self, TypeVar, cast, get_args

from polytask.errors import ConfigError, did_you_mean

T = TypeVar("T")

FieldKind = Literal["category", "number", "categories", "history"]
Scale = Literal["standard", "log", "quantile"]
Pool = Literal["mean", "attention"]
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

    ``kind``: ``category`` is embedded by value; values seen fewer than ``min_count`` times in train count as
    unknown, and with ``buckets`` values are hashed into that many rows instead of being listed. Of a column of the
    users' or items' table, not its id, the rows of that table are counted: users or items, not interactions.
    ``categories`` is a bag of values joined by ``separator``, the mean of whose first ``length`` is read. ``number``
    scales a learned vector by its value: standardized (``scale = "standard"``), after log(1 + x) (``"log"``), or is
    cut into ``buckets`` of equally many rows, embedded each (``"quantile"``). ``history`` is no column: the last
    ``length`` items of the row's user before the row's time (without times: all others), read from the item's
    own embeddings and pooled by ``mean`` or by ``attention`` on the row's item.

    ``side`` says whose property it is: the user's, the item's, or the interaction's own (context).
    """

    name: str
    kind: FieldKind = "category"
    side: Side = "context"
    buckets: int = 0
    min_count: int = 1
    scale: Scale = "standard"
    separator: str = "|"
    length: int = 50
    pool: Pool = "mean"

    def __post_init__(self) -> None:
        where = f"field '{self.name}'"
        _member(f"{where}: kind", self.kind, get_args(FieldKind))
        _member(f"{where}: side", self.side, get_args(Side))
        _member(f"{where}: scale", self.scale, get_args(Scale))
        _member(f"{where}: pool", self.pool, get_args(Pool))
        if self.buckets < 0 or self.min_count < 1 or self.length < 1 or not self.separator:
            raise ConfigError(f"{where}: buckets must be >= 0, min_count and length >= 1, separator not empty")
        if self.scale == "quantile" and self.buckets < 2:
            raise ConfigError(f'{where}: scale = "quantile" needs buckets = 2 or more')


@dataclass(frozen=True, slots=True)
class Input:
    """A field as the model sees it: ``size`` embedding rows, row 0 for unknown (a number has one row).

    ``slots`` is how many values a row holds: 1, or the length of a bag or history, padded. ``reads`` names the
    field whose embedding rows it uses, if not its own.
    """

    name: str
    kind: FieldKind
    side: Side
    size: int
    slots: int = 1
    reads: str = ""
    pool: Pool = "mean"


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

    ``given`` names the binary task this one is conditional on, as a conversion is on its click: the task predicts
    p(this | given), and its label counts where the condition held. ``by`` is a number column that the loss and
    the metrics read beside the label, as the duration of a video is for its watch time. ``row_weight`` is a
    column of weights of the rows, in loss and metrics. ``bias_fields`` are context fields that only a shallow
    tower of this task reads, in training alone (position bias). ``options`` go to the loss. ``calibrate`` maps a
    binary task's probabilities (``platt`` or ``isotonic``), fitted on validation data after training.
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
    given: str | None = None
    by: str | None = None
    row_weight: str | None = None
    bias_fields: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    calibrate: str | None = None

    def __post_init__(self) -> None:
        _member(f"task '{self.name}': kind", self.kind, get_args(TaskKind))
        _member(f"task '{self.name}': head", self.head, get_args(HeadKind))
        set_ = object.__setattr__
        set_(self, "loss", self.loss or _DEFAULT_LOSS[self.kind])
        set_(self, "metrics", tuple(self.metrics) or _DEFAULT_METRICS[self.kind])
        set_(self, "bias_fields", tuple(self.bias_fields))
        if self.range is not None:
            set_(self, "range", (float(self.range[0]), float(self.range[1])))
        if self.kind != "ranking" and self.column is None:
            raise ConfigError(f"task '{self.name}': a {self.kind} task needs label = \"column\"")
        if not 0 <= self.weight < inf or self.negatives < 1:
            raise ConfigError(f"task '{self.name}': weight must be >= 0 and finite, negatives >= 1")
        if self.calibrate and self.kind != "binary":
            raise ConfigError(f"task '{self.name}': calibrate is for binary tasks, which predict probabilities")
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

    ``user`` and ``item`` are category fields of their own side without being listed; listing them is for setting
    their buckets or ``min_count``. Times are seconds.
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
        for kind, names in (("task", self.task_names), ("field", tuple(f.name for f in self.fields))):
            if repeated := sorted({n for n in names if names.count(n) > 1}):
                raise ConfigError(f"schema: {kind} '{repeated[0]}' is named twice; names are unique")
        if self.user is not None and self.user == self.item:
            raise ConfigError(f"schema: user and item are both '{self.user}'; name two columns")
        for task in self.tasks:
            if (task.kind == "ranking" or task.head == "dot") and not (self.user and self.item):
                raise ConfigError(f"task '{task.name}': a ranking task or dot head needs the user and item columns")
            self._check_given(task)
            self._check_bias_fields(task)
        if self.histories and not (self.user and self.item):
            raise ConfigError(f"field '{self.histories[0].name}': a history needs the user and item columns")
        labels = {t.column for t in self.tasks}
        if leaking := [f.name for f in self.inputs if f.name in labels]:
            raise ConfigError(f"field '{leaking[0]}' is also a label: the model would read its own answer; remove it")

    def _check_given(self, task: Task) -> None:
        if task.given is None:
            return
        parent = self.task(task.given)
        if task.kind != "binary" or parent.kind != "binary":
            raise ConfigError(f"task '{task.name}': given = '{task.given}' holds between binary tasks only")
        if task.name in self.chain(parent.name):
            raise ConfigError(f"task '{task.name}': given = '{task.given}' closes a circle")

    def _check_bias_fields(self, task: Task) -> None:
        context = [f.name for f in self.fields if f.side == "context"]
        for name in task.bias_fields:
            if name not in context:
                raise ConfigError(f"task '{task.name}': " + did_you_mean("bias field", name, context))

    def chain(self, name: str) -> tuple[str, ...]:
        """The tasks that ``name`` is conditional on, nearest first, after itself; a circle is walked once."""
        found = [name]
        while (parent := self.task(found[-1]).given) is not None and parent not in found:
            found.append(parent)
        return tuple(found)

    @property
    def histories(self) -> tuple[Field, ...]:
        """The fields that are histories."""
        return tuple(f for f in self.fields if f.kind == "history")

    @property
    def bias_fields(self) -> tuple[str, ...]:
        """Fields that only position-bias towers read."""
        return tuple(dict.fromkeys(name for t in self.tasks for name in t.bias_fields))

    @property
    def inputs(self) -> tuple[Field, ...]:
        """Every field the model reads: user side first (histories at its end), then item side, then context.

        The fields of position-bias towers stand last.
        """
        listed = {f.name: f for f in self.fields}
        sides: tuple[tuple[str | None, Side], ...] = ((self.user, "user"), (self.item, "item"))
        own = [replace(listed.pop(name, Field(name)), side=side) for name, side in sides if name]
        every = [*own, *(replace(f, side="user") if f.kind == "history" else f for f in listed.values())]
        every.sort(key=lambda f: (f.kind == "history", f.name in self.bias_fields))
        return tuple(f for side in get_args(Side) for f in every if f.side == side)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(t.name for t in self.tasks)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the interactions table must have."""
        fields = [f.name for f in self.fields if f.side == "context" and f.kind != "history"]
        labels = [c for t in self.tasks for c in (t.column, t.by, t.row_weight)]
        return tuple(dict.fromkeys(c for c in [self.user, self.item, self.time, *fields, *labels] if c))

    def task(self, name: str) -> Task:
        """The task called ``name``."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise ConfigError(did_you_mean("task", name, self.task_names))

    def only(self, *names: str) -> "Schema":
        """The same data with these tasks alone, and those they are conditional on.

        A field that only bias towers of the other tasks read is left out: a body must not come to read it.
        """
        kept = dict.fromkeys(t for name in names for t in reversed(self.chain(name)))
        tasks = tuple(self.task(t) for t in kept)
        gone = set(self.bias_fields) - {name for t in tasks for name in t.bias_fields}
        return replace(self, tasks=tasks, fields=tuple(f for f in self.fields if f.name not in gone))

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
