"""All figures of a report by name: one per subject, and only for what the runs have."""

from polytask.report.canvas import styles
from polytask.report.document import Document
from polytask.report.figures import figures
from polytask.report.maps import conflict_map, gate_map, lookahead_map
from polytask.report.pace import pace
from polytask.report.scatter import scatter
from polytask.report.seesaw import seesaw


def charts(document: Document) -> dict[str, str]:
    """The figures as Plotly's JSON: *seesaw*, *tradeoff*, *conflicts*, *pace*, *lookahead*, *gates*, *comparison-N*."""
    probes, found = document.probes, dict[str, str]()
    if document.verdicts:
        found["seesaw"] = seesaw(document)
    if document.tradeoff and len(document.tradeoff.tasks) == 2:
        found["tradeoff"] = scatter(document.tradeoff)
    if probes.traces:
        found["conflicts"] = conflict_map(probes.traces)
    if document.shares:
        found["pace"] = pace(document.shares, styles(document.settings))
    if probes.lookaheads:
        found["lookahead"] = lookahead_map(probes.lookaheads)
    if document.gates:
        found["gates"] = gate_map(document.gates)
    return found | {f"comparison-{n}": text for n, text in enumerate(figures(document))}
