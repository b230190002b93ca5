"""Findings by kind, each with the command that is its remedy, if there is one."""

from collections.abc import Sequence
from dataclasses import dataclass

from polytask.diagnose import Finding


@dataclass(frozen=True)
class Kind:
    """All findings of one kind, in order: (text, command line that remedies it or nothing).

    A command that is the same for several in a row stands at the last of them.
    """

    kind: str
    items: tuple[tuple[str, str], ...]


def by_kind(findings: Sequence[Finding]) -> tuple[Kind, ...]:
    """The findings by kind, in the order of first appearance."""
    kinds = dict.fromkeys(f.kind for f in findings)
    return tuple(Kind(k, _items([f for f in findings if f.kind == k])) for k in kinds)


def _items(findings: Sequence[Finding]) -> tuple[tuple[str, str], ...]:
    commands = [f.remedy for f in findings]
    return tuple(
        (f.text, "" if own == after else own)
        for f, own, after in zip(findings, commands, [*commands[1:], ""], strict=True)
    )
