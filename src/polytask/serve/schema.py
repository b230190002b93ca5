"""What requests and answers look like: read strictly, and told in the OpenAPI document."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from polytask.recommend.query import MOST

_ID = 1024  # characters

Id = Annotated[str, StringConstraints(max_length=_ID)]
Ids = Annotated[list[Id], Field(max_length=MOST)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Value = Id | Number | None
Context = Annotated[dict[Id, Value], Field(max_length=100)]
Weights = Annotated[dict[Id, Number], Field(max_length=100)]
Source = Annotated[str, StringConstraints(max_length=_ID)] | Weights
Display = dict[str, str | None]


class Ask(BaseModel):
    """A request: no key but those named, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AskRecommend(Ask):
    """The best items for a user, or for nobody in particular; those just seen in ``history`` speak for a new user."""

    user_id: Id | None = None
    k: Count = 10
    mix: Source | None = None
    exclude_seen: bool = True
    candidates: Ids | None = None
    exclude: Ids = Field(default_factory=list)
    context: Context = Field(default_factory=dict)
    history: Ids = Field(default_factory=list)
    diversity: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    caps: Annotated[dict[Id, Count], Field(max_length=10)] = Field(default_factory=dict)
    display: bool = False


class AskScore(Ask):
    """What each task predicts for pairs of ``user_id`` and ``item_id``; other keys of a row are columns of the data."""

    rows: Annotated[list[Annotated[dict[Id, Value], Field(max_length=1000)]], Field(min_length=1, max_length=MOST)]


class AskSimilar(Ask):
    """The items nearest to an item."""

    item_id: Id
    k: Count = 10
    display: bool = False


class AskExplain(Ask):
    """Why an item stands where it does for a user."""

    user_id: Id
    item_id: Id
    mix: Source | None = None
    context: Context = Field(default_factory=dict)


class AskSearch(Ask):
    """Users or items whose id or table holds a text; the first ones without a text."""

    side: Literal["user", "item"]
    text: Id = ""
    limit: Count = 20


class AskHistory(Ask):
    """What a user had, newest first."""

    user_id: Id
    limit: Count = 50


class Answer(BaseModel):
    """An answer, with the version of the bundle it was computed from."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_version: str


class Listed(BaseModel):
    """An item of a list; ``values`` is what each task predicts."""

    item_id: str
    rank: int
    score: float | None
    values: dict[str, float | None]
    display: Display | None = None


class Recommended(Answer):
    """The list for a user; ``cold_start`` says that the model does not know them."""

    user_id: str | None
    cold_start: bool
    mix: str
    items: list[Listed]


class Scored(BaseModel):
    """The predictions for one row; ``cold_start`` says that the model does not know the user or the item."""

    user_id: str | None
    item_id: str | None
    values: dict[str, float | None]
    cold_start: bool


class Scores(Answer):
    """The predictions for rows, in their order."""

    rows: list[Scored]


class Near(BaseModel):
    """An item, and how near it is: a cosine."""

    item_id: str
    rank: int
    score: float | None
    display: Display | None = None


class Similar(Answer):
    """The items nearest to an item."""

    item_id: str
    items: list[Near]


class Share(BaseModel):
    """A part of a fused score: a summand, or the logarithm of a factor."""

    text: str
    part: float | None


class Reason(BaseModel):
    """What one task says of an item: as the model predicts it, and as it is to be read."""

    task: str
    kind: str
    raw: float | None
    value: float | None
    label: str


class Explained(Answer):
    """Why an item stands where it does; ``rank`` is null for one that is not listed."""

    user_id: str
    item_id: str
    score: float | None
    mix: str
    parts: list[Share]
    tasks: list[Reason]
    rank: int | None


class Match(BaseModel):
    """A user or item found."""

    id: str
    display: Display


class Matches(Answer):
    """Users or items found."""

    matches: list[Match]


class Had(BaseModel):
    """An item of a history."""

    item_id: str
    display: Display


class History(Answer):
    """What a user had, newest first."""

    user_id: str
    items: list[Had]


class TaskFacts(BaseModel):
    """A task of the model, with its metrics by part of the data."""

    name: str
    kind: Literal["ranking", "regression", "binary"]
    range: tuple[float, float] | None
    calibrated: bool
    metrics: dict[str, dict[str, float | None]]


class ModelFacts(Answer):
    """What the model is, how good it is, and what may be asked of it."""

    name: str
    format: int
    created: str
    user: str | None
    item: str | None
    tasks: list[TaskFacts]
    mix: str
    mix_points: list[dict[str, object]]
    mix_metrics: dict[str, str]
    counts: dict[str, int | dict[str, int]]
    verdicts: list[dict[str, object]]
    card: str
    display: dict[str, object]
    context: list[dict[str, str]]
    limits: dict[str, int]


class Health(BaseModel):
    """Alive, or ready."""

    status: Literal["ok"]


class ErrorBody(BaseModel):
    """A stable code, one line for people, and the id of the request, which is in its answer's header too."""

    code: str
    message: str
    request_id: str


class Error(BaseModel):
    """The form of every error."""

    error: ErrorBody
