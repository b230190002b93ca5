"""Findings by kind, each with the command that is its remedy, if there is one."""

from collections.abc import Sequence
from dataclasses import dataclass

from polytask.diagnose import Finding


@dataclass(frozen=True)
class Kind:
    """All findings of one kind, in order: (text, command line that remedies it or nothing)."""

    kind: str
    items: tuple[tuple[str, str], ...]


def by_kind(findings: Sequence[Finding]) -> tuple[Kind, ...]:
    """The findings by kind, in the order of first appearance."""
    kinds = dict.fromkeys(f.kind for f in findings)
    return tuple(Kind(k, tuple((f.text, remedy(f)) for f in findings if f.kind == k)) for k in kinds)


def remedy(found: Finding) -> str:
    """The command line that remedies a finding, or nothing."""
    return str(getattr(found, "remedy", "") or "")
