"""TOML files to the objects of the library, and back: every key is known, or an error names the near one."""

import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, fields, replace
from dataclasses import Field as DataField
from importlib import resources
from pathlib import Path
from typing import Any, Self, get_type_hints

import tomli_w
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError, create_model

from polytask.balance import BALANCERS, Balance
from polytask.compare import Capacity, Experiment, Setting
from polytask.data.datasets import DATASETS, load
from polytask.data.features import inferred
from polytask.data.source import open_table
from polytask.data.table import Dataset, build, with_schema
from polytask.errors import ConfigError, did_you_mean
from polytask.nn.bodies import BODIES
from polytask.nn.design import Design, Share
from polytask.run import TrainConfig
from polytask.schema import Field, Schema, Task
from polytask.tune import Search, TuneConfig

STATIC = "static"
"""In the place of a balancer: a sweep over fixed weights, from which validation data choose."""


class Section(BaseModel):
    """A table of the configuration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _section_of(cls: type, *, without: str = "", **types: Any) -> type[Section]:
    """A section with the fields and defaults of a dataclass, so that both are stated once.

    The field ``without`` has a section of its own; ``types`` are those of a TOML file where they differ.
    """
    hints = get_type_hints(cls) | types
    columns = {f.name: (hints[f.name], _default(f)) for f in fields(cls) if f.name != without}
    return create_model(f"{cls.__name__}Section", __base__=Section, **columns)  # type: ignore[call-overload, no-any-return]


def _default(entry: DataField[Any]) -> Any:
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    return ... if entry.default is MISSING else entry.default


FieldSection: Any = _section_of(Field)
TaskSection: Any = _section_of(Task)
TrainSection: Any = _section_of(TrainConfig, without="balance")
TuneSection: Any = _section_of(TuneConfig)
BalanceSection: Any = _section_of(Balance, options=dict[str, Any])


class SplitSection(Section):
    """``[data] split``: see :func:`polytask.split`. Comparisons use their own seeds."""

    kind: str = "random"
    valid: float = 0.05
    test: float = 0.05
    seed: int = 0


class DataSection(Section):
    """``[data]``: a file, a folder of Parquet, or a data set's name, and which columns are what.

    ``features`` names columns of any table to be read as they are; a ``[[feature]]`` of the same name says more.
    """

    interactions: str
    users: str | None = None
    items: str | None = None
    user: str | None = None
    item: str | None = None
    time: str | None = None
    features: list[str] = []
    separator: str | None = None
    columns: list[str] | None = None
    stream: bool = False
    split: SplitSection = SplitSection()


class ModelSection(Section):
    """``[model]``: see :meth:`polytask.MultiTask.build`."""

    body: str = "factorize"
    dim: int = 32
    share: Share = "shared"
    tower: tuple[int, ...] = (64,)
    start_at_mean: bool = True
    options: dict[str, Any] = {}
    blocks: list[dict[str, Any]] = []
    dropout: float = 0.0


class CompareSection(Section):
    """``[compare]``: seeds (each with its own split), single-task baselines, and what counts as equivalent."""

    seeds: tuple[int, ...] = (0, 1, 2)
    baselines: bool = True
    capacity: Capacity = "network"
    wider: bool = False
    margin: FiniteFloat | None = None


class SettingSection(Section):
    """``[[setting]]``: a name, and dotted overrides of ``model``, ``train``, ``balance`` and task weights."""

    name: str
    set: dict[str, Any] = {}


class Config(Section):
    """A whole configuration."""

    name: str = "experiment"
    data: DataSection
    feature: list[FieldSection] = []
    task: list[TaskSection] = []
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    balance: BalanceSection = BalanceSection()
    compare: CompareSection = CompareSection()
    tune: TuneSection = TuneSection()
    setting: list[SettingSection] = []
    variant: dict[str, dict[str, Any]] = {}

    @classmethod
    def of(cls, value: dict[str, Any]) -> Self:
        """Validate plain values; every error is named, in one line."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(cls, e) for e in error.errors())) from None

    def with_overrides(self, overrides: Mapping[str, Any]) -> "Config":
        """This configuration with dotted keys replaced, as in ``{"train.epochs": 5, "task.watch.weight": 0.9}``."""
        value = self.model_dump(exclude_unset=True)
        for key, new in overrides.items():
            _override(value, key, new)
        return Config.of(value)

    def with_variant(self, name: str) -> "Config":
        """This configuration with the overrides of ``[variant.name]``."""
        if name not in self.variant:
            raise ConfigError(
                did_you_mean("variant", name, self.variant) if self.variant else f"no variant '{name}' here"
            )
        return self.with_overrides(self.variant[name])

    def toml(self) -> str:
        """The configuration as TOML that :func:`parse` reads back, defaults included."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def moved(self, base: Path, folder: Path) -> "Config":
        """This configuration for a file in ``folder``: relative paths, which started at ``base``, start there."""
        given = {key: getattr(self.data, key) for key in ("interactions", "users", "items")}
        paths = {k: p for k, p in given.items() if p is not None and p not in DATASETS and not Path(p).is_absolute()}
        start = folder.resolve()
        return self.with_overrides(
            {f"data.{k}": os.path.relpath((base / p).resolve(), start) for k, p in paths.items()}
        )

    def schema_for(self, data: Dataset | None = None, found: tuple[Field, ...] = ()) -> Schema:
        """The schema of this configuration; with built-in ``data`` its columns, and its tasks if none are named.

        The fields are those of ``[[feature]]`` and the ``found`` ones that ``[data] features`` names.
        """
        tasks = tuple(_task(t) for t in self.task)
        fields = (*(Field(**f.model_dump()) for f in self.feature), *found)
        if data is not None:
            return replace(data.schema, tasks=tasks or data.schema.tasks, fields=fields or data.schema.fields)
        d = self.data
        return Schema(tasks, fields, user=d.user, item=d.item, time=d.time)

    def load_data(self, base: Path = Path()) -> Dataset:
        """Read the data; relative paths start at ``base``."""
        d = self.data
        if d.stream:
            raise ConfigError("data.stream = true is for training alone; say data.stream = false to read all in memory")
        if d.interactions in DATASETS:
            return self._built_in(load(d.interactions))
        if "/" not in d.interactions and not (base / d.interactions).exists() and "." not in d.interactions:
            raise ConfigError(did_you_mean("data set", d.interactions, DATASETS) + ", or a file's path")
        raw = open_table(base / d.interactions, "interactions", d.separator, d.columns)
        users, items = (
            None if p is None else open_table(base / p, role) for role, p in (("users", d.users), ("items", d.items))
        )
        frames = (None if table is None else table.frame for table in (raw, users, items))
        schema = self.schema_for(found=inferred(self.short(d.user, d.item), *frames))
        return build(raw, schema, users=users, items=items, name="")

    def _built_in(self, data: Dataset) -> Dataset:
        """``data`` with the tasks and features of this configuration; its own where none are named."""
        names = self.short(data.schema.user, data.schema.item)
        own = {f.name: f for f in data.schema.fields if f.name in names}
        rest = [n for n in names if n not in own]
        found = (*own.values(), *inferred(rest, data.interactions, data.users, data.items))
        schema = self.schema_for(data, found)
        return data if schema == data.schema else with_schema(data, schema)

    def short(self, *ids: str | None) -> list[str]:
        """The features named in a word that are not fields already, as the ids are."""
        listed = {*ids, *(f.name for f in self.feature)}
        return [name for name in dict.fromkeys(self.data.features) if name not in listed]

    def design(self) -> Design:
        """The model's design."""
        m = self.model
        blocks = Design.frozen_blocks(m.blocks)
        return Design(m.body, m.dim, m.share, m.tower, m.start_at_mean, Design.frozen(m.options), blocks, m.dropout)

    def train_config(self) -> TrainConfig:
        """How to train."""
        return TrainConfig(**self.train.model_dump(), balance=Balance(**self.balance.model_dump()))

    def experiment(self, tasks: Iterable[str]) -> Experiment:
        """The comparison of all settings (of this configuration itself where none is listed) on ``tasks``."""
        settings = self.setting or [SettingSection(name=self.name)]
        split, names = self.data.split, list(tasks)
        return Experiment(
            tuple(setting for s in settings for setting in self._settings(s, names)),
            seeds=self.compare.seeds,
            baselines=self.compare.baselines,
            capacity=self.compare.capacity,
            wider=self.compare.wider,
            split=split.kind,
            valid=split.valid,
            test=split.test,
        )

    def search(self, tasks: Iterable[str]) -> Search:
        """What ``[tune]`` asks for: a search that starts from this configuration, and the settings it has to beat."""
        names = list(tasks)
        return Search(
            lambda name, changes: self._setting(SettingSection(name=name, set=dict(changes)), names),
            self.experiment(names),
            TuneConfig(**self.tune.model_dump()),
        )

    def crossed(self, bodies: Sequence[str] = (), balances: Sequence[str] = ()) -> "Config":
        """This configuration with a setting for every one of ``bodies`` with every one of ``balances``.

        A body is a listed setting's name, or that of a body with its default options; a balance is a kind, or
        ``"static"`` for a sweep over fixed weights. Where none are given, those of the configuration stand.
        """
        listed = {s.name: s for s in self.setting}
        base = [listed.get(b) or self._of_body(b) for b in bodies]
        base = base or list(self.setting) or [SettingSection(name=self.name)]
        known = [*BALANCERS, STATIC]
        for kind in balances:
            if kind not in known:
                raise ConfigError(did_you_mean("balance", kind, known))
        settings = [new for s in base for new in self._with_each(s, balances)]
        return self.model_copy(update={"setting": settings or base})

    def _of_body(self, body: str) -> SettingSection:
        """This configuration on another body, with that one's defaults; on its own body as it is."""
        if body == self.model.body:
            return SettingSection(name=body)
        changes: dict[str, Any] = {"model.body": body, "model.options": {}}
        if getattr(BODIES.get(body), "both", False):
            changes |= {"model.share": "both", "model.blocks": []}
        elif self.model.share == "both":
            changes |= {"model.share": "shared"}
        return SettingSection(name=body, set=changes)

    def _with_each(self, section: SettingSection, balances: Sequence[str]) -> list[SettingSection]:
        """A setting with every balance; where nothing is shared there is nothing to balance, and it stays one."""
        if self.with_overrides(section.set).model.share == "separate":
            return [section.model_copy(update={"set": section.set | {"balance": {}}})]
        return [SettingSection(name=f"{section.name} {k}", set=section.set | self._balanced(k)) for k in balances]

    def _balanced(self, kind: str) -> dict[str, Any]:
        """The overrides that choose a balance; how gradients are read stays, options stay for their own kind."""
        given = self.balance.model_dump(exclude_unset=True)
        reads = kind != STATIC and BALANCERS[kind].needs != "losses"
        own = ("options", "scale_heads") if kind == self.balance.kind else ()
        kept = {k: v for k, v in given.items() if k in own or (reads and k in ("at", "every", "share"))}
        return {"balance": kept | {"kind": kind}}

    def _overridden(self, section: SettingSection) -> "Config":
        """This configuration with what the setting changes; other keys than those it may change are an error."""
        for key in section.set:
            weight = key.startswith("task.") and key.endswith(".weight")
            if not weight and key != "balance" and not key.startswith(("model.", "train.", "balance.")):
                raise ConfigError(
                    f"setting '{section.name}': '{key}' cannot differ; only model, train, balance and task weights can"
                )
        return self.with_overrides(section.set)

    def _settings(self, section: SettingSection, tasks: list[str]) -> list[Setting]:
        """The setting of a section, or its sweep over static weights."""
        own = self._overridden(section)
        if own.balance.kind != STATIC:
            return [self._setting(section, tasks)]
        fixed = section.model_copy(update={"set": section.set | {"balance": {}}})
        return self._setting(fixed, tasks).swept()

    def _setting(self, section: SettingSection, tasks: list[str]) -> Setting:
        own = self._overridden(section)
        weights = {t: next((s.weight for s in own.task if s.name == t), 1.0) for t in tasks}
        return Setting(section.name, own.design(), weights, own.train_config())


def parse(text: str, where: str = "configuration") -> Config:
    """Read a configuration from TOML."""
    try:
        return Config.of(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def read(name: str) -> tuple[Config, Path]:
    """The configuration in a TOML file, or a built-in one by name, and the folder its paths start at."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        try:
            return parse(path.read_text("utf-8"), str(path)), path.parent
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}"
            ) from None
    built_in = {
        f.name.removesuffix(".toml"): f
        for f in resources.files("polytask.experiments").iterdir()
        if f.name.endswith(".toml")
    }
    if name not in built_in:
        raise ConfigError(did_you_mean("experiment", name, built_in) + ", or the path of a TOML file")
    return parse(built_in[name].read_text("utf-8"), name), Path()


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """``["train.epochs=5"]`` as ``{"train.epochs": 5}``; values are TOML, or else text."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text}: write it as key=value, as in train.epochs=5")
        try:
            found[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value
    return found


def _task(section: Any) -> Task:
    return Task(**section.model_dump())


def _override(value: dict[str, Any], key: str, new: Any) -> None:
    """Set a dotted key; a list of named tables (tasks, features) is addressed by name."""
    *path, last = key.split(".")
    at: Any = value
    if path and path[0] in ("task", "feature", "setting") and path[0] not in value:
        raise ConfigError(f"'{key}' does not exist: the configuration lists no [[{path[0]}]]; add it there first")
    for number, part in enumerate(path):
        if isinstance(at, list):
            named = {entry["name"]: entry for entry in at}
            if part not in named:
                raise ConfigError(did_you_mean(".".join(path[:number]), part, named))
            at = named[part]
        else:
            at = at.setdefault(part, {})
        if not isinstance(at, dict | list):
            raise ConfigError(f"'{key}' does not exist: '{'.'.join(path[: number + 1])}' is a value, not a table")
    if isinstance(at, list):
        raise ConfigError(f"'{key}' names no value; write {'.'.join(path)}.NAME.KEY")
    at[last] = deepcopy(new)


def _explain(cls: type[BaseModel], error: Any) -> str:
    *path, last = [str(p) for p in error["loc"]] or [""]
    where = ".".join([*path, last])
    if error["type"] == "extra_forbidden":
        return did_you_mean("key", last, _keys(cls, path)) + (f" (in {'.'.join(path)})" if path else "")
    if error["type"] == "missing":
        return f"{where} is missing"
    return f"{where} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _keys(cls: type[BaseModel], path: list[str]) -> list[str]:
    """The known keys of the table at ``path``."""
    section: Any = cls
    for part in path:
        if not part.isdigit():
            found = section.model_fields[part].annotation
            section = found.__args__[0] if hasattr(found, "__args__") else found
    return list(section.model_fields)
