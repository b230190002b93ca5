"""Everything a report says, as plain values that the page, the Markdown and the JSON show alike."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polytask.diagnose import Finding, diagnose
from polytask.errors import ConfigError
from polytask.report.balancing import Match, Sweep, balanced, labels, matches, reference, shown, sweeps
from polytask.report.comparisons import Comparison, comparisons
from polytask.report.conflicts import Probes, Share, probes, shares
from polytask.report.experts import Calibrated, Gate, calibrations, gates
from polytask.report.headline import headline
from polytask.report.notes import notes
from polytask.report.settings import Curve, Setting, curves, describe, grouped
from polytask.report.tradeoff import TradeOff, tradeoff
from polytask.report.verdicts import Change, Resampled, Verdict, changes, note, resampled, verdicts
from polytask.run import Run
from polytask.transfer import parts, transfers


@dataclass(frozen=True)
class Document:
    """What a report says, outcome first.

    Of a sweep over static weights all but ``tradeoff`` show the chosen point alone. ``verdict_note`` tells what is
    special about baselines and names, if anything; ``balancing`` is the sentence on the ``matches``, if there are any.
    """

    title: str
    headline: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    changes: tuple[Change, ...]
    resampled: tuple[Resampled, ...]
    verdict_note: str
    findings: tuple[Finding, ...]
    balancing: str
    matches: tuple[Match, ...]
    sweeps: tuple[Sweep, ...]
    tradeoff: TradeOff | None
    probes: Probes
    shares: tuple[Share, ...]
    gates: tuple[Gate, ...]
    calibrations: tuple[Calibrated, ...]
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
    every = grouped(runs)
    swept = sweeps(every)
    settings = shown(every, swept)  # before any verdict, so that corrections count what is shown
    found = transfers(settings, margin=margin)
    rows, findings = verdicts(found), diagnose(settings, found)
    matched = matches(settings, swept, margin)
    balancing = balanced(matched, swept)
    return Document(
        title=title,
        headline=headline(settings, rows, findings, balancing),
        verdicts=rows,
        changes=changes(found),
        resampled=resampled(settings, found),
        verdict_note=" ".join([*([said] if (said := note(settings, rows)) else []), *labels(swept)]),
        findings=tuple(findings),
        balancing=balancing,
        matches=matched,
        sweeps=swept,
        tradeoff=tradeoff(every, swept, found),
        probes=probes(settings),
        shares=shares(settings),
        gates=gates(settings),
        calibrations=calibrations(settings),
        comparisons=comparisons(settings, findings, margin),
        settings=describe(settings, {n: reference(settings, swept, n) for n in settings}),
        notes=notes(settings, margin),
        curves=curves(settings),
    )
