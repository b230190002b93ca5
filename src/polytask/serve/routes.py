"""The table of questions: path, form, answer. What is not in it does not exist."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel

from polytask.serve import answers
from polytask.serve import schema as forms
from polytask.serve.snapshot import Snapshot


class Question(NamedTuple):
    """A path of the API: POST with a body ``asks``, or GET where that is None. ``prepare`` makes the job."""

    path: str
    asks: type[forms.Ask] | None
    gives: type[BaseModel]
    prepare: Callable[[Snapshot, Any], answers.Job]

    @property
    def method(self) -> str:
        """The HTTP method."""
        return "GET" if self.asks is None else "POST"


QUESTIONS = (
    Question("/v1/recommend", forms.AskRecommend, forms.Recommended, answers.recommend),
    Question("/v1/score", forms.AskScore, forms.Scores, answers.score),
    Question("/v1/similar", forms.AskSimilar, forms.Similar, answers.similar),
    Question("/v1/explain", forms.AskExplain, forms.Explained, answers.explain),
    Question("/v1/search", forms.AskSearch, forms.Matches, answers.search),
    Question("/v1/history", forms.AskHistory, forms.History, answers.history),
    Question("/v1/model", None, forms.ModelFacts, answers.model),
)
HEALTH = ("/health/live", "/health/ready")

_ALWAYS = {400: "Malformed or invalid", 401: "No token", 403: "Strange host or origin", 431: "Headers too large"}
_ASKED = {404: "Unknown id", 408: "Sent too slowly", 413: "Body too large", 415: "Not JSON", 429: "Queue full"}
_SERVED = {503: "Not ready", 504: "Took too long"}


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document of the table.

    FastAPI writes it and has no part in answering: its way through a request takes longer than most answers do.
    """
    from fastapi import FastAPI

    app = FastAPI(title="polytask", version="1", description="Recommendations of one bundle, for raw ids.")
    for question in QUESTIONS:
        told = _ALWAYS | _SERVED | (_ASKED if question.asks else {})
        _add(app, question.path, question.asks, question.gives, told)
    _add(app, HEALTH[0], None, forms.Health, {})
    _add(app, HEALTH[1], None, forms.Health, {503: "Not ready"})
    found = app.openapi()
    found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    found["security"] = [{}, {"token": []}]
    return found


def _add(app: Any, path: str, asks: type[BaseModel] | None, gives: type[BaseModel], told: dict[int, str]) -> None:
    def ask() -> None: ...

    def post(asked: BaseModel) -> None: ...

    form = asks or gives
    endpoint = ask if asks is None else post
    if asks is not None:
        endpoint.__annotations__["asked"] = asks
    responses = {code: {"model": forms.Error, "description": text} for code, text in told.items()}
    # A description of other codes keeps FastAPI from adding its own form of errors.
    responses |= {"default": {"model": forms.Error, "description": "Refused"}}  # type: ignore[dict-item]
    app.add_api_route(
        path,
        endpoint,
        methods=["GET" if asks is None else "POST"],
        operation_id=path.strip("/").replace("/", "_"),
        summary=path.rpartition("/")[2].capitalize(),
        description=form.__doc__,
        response_model=gives,
        responses=responses,
    )
