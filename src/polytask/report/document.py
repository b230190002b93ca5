"""Everything a report says, as plain values that the page, the Markdown and the JSON show alike."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polytask.diagnose import Finding, diagnose
from polytask.errors import ConfigError
from polytask.report.comparisons import Comparison, comparisons
from polytask.report.headline import headline
from polytask.report.notes import notes
from polytask.report.settings import Curve, Setting, curves, describe, grouped
from polytask.report.verdicts import Change, Resampled, Verdict, changes, note, resampled, verdicts
from polytask.run import Run
from polytask.transfer import parts, transfers


@dataclass(frozen=True)
class Document:
    """What a report says, outcome first. ``verdict_note`` tells what is special about the baselines, if anything."""

    title: str
    headline: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    changes: tuple[Change, ...]
    resampled: tuple[Resampled, ...]
    verdict_note: str
    findings: tuple[Finding, ...]
    comparisons: tuple[Comparison, ...]
    settings: tuple[Setting, ...]
    notes: tuple[str, ...]
    curves: tuple[Curve, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON."""
        return asdict(self)


def document(runs: Sequence[Run], *, title: str, margin: float | None = None) -> Document:
    """What there is to say of ``runs``, which are grouped into settings by name.

    ``margin`` is the share of the single-task value that counts as equivalent (None: the custom of each metric).
    Without runs, or with one that was scored on nothing: :class:`ConfigError`.
    """
    if not runs:
        raise ConfigError("there are no runs to report on; name a folder that holds finished runs")
    for run in runs:
        parts([run])
    settings = grouped(runs)
    found = transfers(settings, margin=margin)
    rows, findings = verdicts(found), diagnose(settings, found)
    return Document(
        title=title,
        headline=headline(settings, rows, findings),
        verdicts=rows,
        changes=changes(found),
        resampled=resampled(settings, found),
        verdict_note=note(settings, rows),
        findings=tuple(findings),
        comparisons=comparisons(settings, findings, margin),
        settings=describe(settings),
        notes=notes(settings, margin),
        curves=curves(settings),
    )
