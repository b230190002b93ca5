"""The choices that make an architecture: two models of one design can be trained as one stack."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any, Literal, NamedTuple, get_args

from polytask.errors import ConfigError, did_you_mean
from polytask.nn.blocks import BLOCKS
from polytask.nn.bodies import BODIES

Share = Literal["shared", "separate", "both"]
Options = tuple[tuple[str, Any], ...]

_WIDER = 4
WHOLE = ("history",)
"""Names that stand in the place of a body but are whole models (:data:`polytask.nn.models.WHOLE`)."""


class Design(NamedTuple):
    """A body and its options, what is shared, and the widths around it; see :meth:`polytask.MultiTask.build`.

    With ``start_at_mean`` an output bias starts at a constant prediction, such as the training mean (regression) or
    log-odds (binary). ``dropout`` follows each hidden layer of the tower heads.
    """

    body: str = "factorize"
    dim: int = 32
    share: Share = "shared"
    tower: tuple[int, ...] = (64,)
    start_at_mean: bool = True
    options: Options = ()
    blocks: tuple[tuple[str, Options], ...] = ()
    dropout: float = 0.0

    @staticmethod
    def frozen(options: Mapping[str, Any]) -> Options:
        """Options in the order and form that make equal designs equal and hashable."""
        return tuple((k, _frozen(v)) for k, v in sorted(options.items()))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Design":
        """A design from plain values, as ``_asdict`` gives them and JSON reads them back."""
        for key in value:
            if key not in cls._fields:
                raise ConfigError("design: " + did_you_mean("key", key, cls._fields))
        return cls(**{k: _frozen(v) for k, v in value.items()})

    @staticmethod
    def frozen_blocks(blocks: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, Options], ...]:
        """Input blocks given as ``{"kind": name, **options}``, lowest first."""
        for block in blocks:
            if "kind" not in block:
                raise ConfigError(f'a block needs kind = "name"; known: {", ".join(sorted(BLOCKS))}')
        return tuple((str(b["kind"]), Design.frozen({k: v for k, v in b.items() if k != "kind"})) for b in blocks)

    def checked(self) -> "Design":
        """The design itself; what does not fit is a :class:`ConfigError`."""
        if self.body in WHOLE:
            raise ConfigError(
                f"body '{self.body}' is a model of its own, not one of MultiTask: name it in a configuration, or build "
                "it with polytask.nn.models.make_model"
            )
        if self.body not in BODIES:
            raise ConfigError(did_you_mean("body", self.body, [*BODIES, *WHOLE]))
        if self.share not in get_args(Share):
            raise ConfigError(did_you_mean("share", self.share, get_args(Share)))
        if self.dim < 1:
            raise ConfigError(f"dim = {self.dim} must be at least 1")
        if min(self.tower, default=1) < 1:
            raise ConfigError(f"tower = {list(self.tower)}: every width must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout = {self.dropout} must be in [0, 1)")
        if self.both and not getattr(BODIES[self.body], "both", False):
            able = ", ".join(sorted(n for n, b in BODIES.items() if getattr(b, "both", False)))
            raise ConfigError(
                f"body '{self.body}' cannot read shared and own tables at once; share = \"both\" is for: {able}"
            )
        if not self.both and getattr(BODIES[self.body], "both", False):
            raise ConfigError(f"body '{self.body}' reads shared and own tables; set share = \"both\"")
        if self.both and self.blocks:
            raise ConfigError('share = "both" takes no input blocks; leave blocks out')
        _check_options(f"body '{self.body}'", BODIES[self.body], self.options)
        for name, options in self.blocks:
            if name not in BLOCKS:
                raise ConfigError(did_you_mean("block", name, BLOCKS))
            _check_options(f"block '{name}'", BLOCKS[name], options)
        return self

    def joined(self) -> "Design":
        """The same network read by all tasks: with one task trained, the single-task baseline."""
        return self._replace(share="shared") if self.share == "separate" else self

    def widened(self) -> "Design":
        """The design with its body's layers four times as wide; of a body without layers, with wider embeddings."""
        default = signature(BODIES[self.body]).parameters.get("layers") if self.body in BODIES else None
        layers = dict(self.options).get("layers", None if default is None else default.default)
        if layers is None:
            return self._replace(dim=_WIDER * self.dim)
        wide = tuple(_WIDER * w for w in layers)
        return self._replace(options=Design.frozen(dict(self.options) | {"layers": wide}))

    @property
    def both(self) -> bool:
        """Whether every task has tables of its own beside shared ones."""
        return self.share == "both"


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value


def _check_options(what: str, make: Callable[..., Any], options: Options) -> None:
    known = [n for n, p in signature(make).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name, _ in options:
        if name not in known:
            raise ConfigError(did_you_mean(f"option of {what}", name, known or ["(none)"]))
