"""Why a task pays for sharing: the causes that the literature names, each with its evidence rule and its remedy.

The rules are tried in this order, and the first that holds names the cause:

* *early stopping*: harm at the kept epoch that is not there at the task's own best one;
* *loss scale*: other tasks have nearly all of the gradients on what is shared (Chen et al., 2018);
* *capacity*: on a wider trunk, against wider single-task models, the harm is gone;
* *embedding interference*: the gradients conflict in tables and not in the trunk above them (STEM, Su et al., 2024);
* *conflicting gradients*: they conflict in the trunk, or in all there is to share (Yu et al., 2020);
* *label space*: the task is learned where its condition held, and judged by that (Ma et al., 2018).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from polytask.evidence import Cosine, Evidence, evidence
from polytask.loss import LOSSES
from polytask.run import WIDER, Run
from polytask.transfer import TaskTransfer, Transfer

Cause = Literal[
    "early stopping",
    "loss scale",
    "capacity",
    "embedding interference",
    "conflicting gradients",
    "label space",
    "unexplained",
]
_DROWNED = 0.1  # a task with less than this share of the gradients' norms, per even share, does not steer the trunk
_GONE = 0.25  # of the harm may be left on a wider trunk


@dataclass(frozen=True)
class Harm:
    """Why ``task`` pays in ``setting``: the ``cause``, a sentence with the evidence, and a command as a remedy."""

    setting: str
    task: str
    cause: Cause
    text: str
    remedy: str


def causes(settings: Mapping[str, Sequence[Run]], transfers: Sequence[Transfer]) -> list[Harm]:
    """The cause of every harm beyond noise among the ``transfers``; ``settings`` are the runs by setting."""
    by_name = {t.setting: t for t in transfers}
    found = []
    for one in transfers:
        if one.setting.endswith(WIDER) or one.setting not in settings:
            continue
        known = evidence(settings[one.setting])
        wide = by_name.get(one.setting + WIDER)
        for task, verdict in one.tasks.items():
            if verdict.harmed:
                case = _Case(settings[one.setting], task, verdict, known, wide.tasks.get(task) if wide else None)
                found.append(Harm(one.setting, task, *case.judged()))
    return found


@dataclass(frozen=True)
class _Case:
    """One harmed task: the setting's runs, its verdict, the gradient evidence, and the verdict on a wider trunk."""

    runs: Sequence[Run]
    task: str
    verdict: TaskTransfer
    known: Evidence | None
    wide: TaskTransfer | None

    def judged(self) -> tuple[Cause, str, str]:
        """Cause, sentence and remedy."""
        for rule in (self._stopping, self._scale, self._capacity, self._conflict, self._label_space):
            if found := rule():
                return found
        return "unexplained", f"{self._harm()}; {self._unexplained()}.", self._compare("--set compare.wider=true")

    def _unexplained(self) -> str:
        """What the probes say where no rule holds."""
        if self.known is None or self.task not in self.known.tasks:
            return "there are no probes of these runs to say why"
        share = self.known.dominance[self.known.tasks.index(self.task)]
        return f"its gradients are {share:.1%} of all on what is shared and conflict with no other task's beyond noise"

    def _stopping(self) -> tuple[Cause, str, str] | None:
        if not self.verdict.artefact:
            return None
        own, kept = self.verdict.own, self.verdict.kept
        text = (
            f"'{self.runs[0].name}': '{self.task}' is behind its single-task model at the kept epoch "
            f"({kept.metric} {kept.joint:.4g} against {kept.alone:.4g}) but not at its own best epoch "
            f"({own.joint:.4g} against {own.alone:.4g}): this is when training stopped, not what was shared."
        )
        return "early stopping", text, self._compare("--balance fixed,static,dwa")

    def _scale(self) -> tuple[Cause, str, str] | None:
        if self.known is None or self.task not in self.known.tasks:
            return None
        place, even = self.known.tasks.index(self.task), 1 / len(self.known.tasks)
        share, step = self.known.dominance[place], self.known.update_share[place]
        if not share < _DROWNED * 2 * even:
            return None
        text = (
            f"{self._harm()}: its gradients are {share:.1%} of all on what is shared (even: {even:.0%}), its "
            f"part of the optimizer's step {step:.1%} and its loss {self.known.loss_share[place]:.1%}: the shared "
            "parameters follow the others."
        )
        return "loss scale", text, self._compare("--balance fixed,loss_scale,uncertainty,metabalance,static")

    def _capacity(self) -> tuple[Cause, str, str] | None:
        if self.wide is None:
            return None
        harm, left = -self.verdict.own.relative, -self.wide.own.relative
        if left > _GONE * harm:
            return None
        text = (
            f"{self._harm()}, and on a wider trunk {self.wide.own.relative:+.1%} against wider single-task models: "
            "the trunk is too narrow for all of its tasks."
        )
        return "capacity", text, self._compare(f"--body {self._bodies('mmoe', 'ple')} --set compare.wider=true")

    def _conflict(self) -> tuple[Cause, str, str] | None:
        if self.known is None or self.task not in self.known.tasks:
            return None
        tables, trunk = self._worst(self.known.tables), self._worst(self.known.trunk)
        if trunk is not None:
            other, group, cosine = trunk
            cause: Cause = "conflicting gradients"
            where = f"in the trunk ({group})"
            remedy = self._compare(f"--body {self._bodies('ple', 'adatt')} --balance fixed,pcgrad,upgrad,mgda")
        elif tables is not None:
            other, group, cosine = tables
            cause = "embedding interference" if self.known.trunk else "conflicting gradients"
            beside = "and nowhere in the trunk" if self.known.trunk else "which are all they share"
            where = f"in the tables ({group}), {beside}"
            change = f"--body {self._bodies('stem')}" if self.known.trunk else "--balance fixed,mgda,imtl_g,static"
            remedy = self._compare(change)
        else:
            return None
        text = f"{self._harm()}: its gradients and those of '{other}' conflict {where}, cosine {cosine}."
        if self.wide is None and cause == "conflicting gradients":
            text += " Too little capacity looks the same: compare.wider = true tells the two apart."
        return cause, text, remedy

    def _worst(self, groups: Sequence[str]) -> tuple[str, str, Cosine] | None:
        """The other task, group and cosine of the strongest conflict of this task on some parameters."""
        assert self.known is not None
        found = [
            (other, group, cosine)
            for other in self.known.tasks
            if other != self.task
            for group, cosine in zip(groups, self.known.of_pair(self.task, other, groups), strict=True)
            if cosine.relation == "conflict"
        ]
        return min(found, key=lambda f: min(f[2].value, f[2].same), default=None)

    def _label_space(self) -> tuple[Cause, str, str] | None:
        task = self.runs[0].schema.task(self.task)
        if not task.given or LOSSES[task.loss].given:
            return None
        text = (
            f"{self._harm()}: it is learned on the rows where '{task.given}' held alone, beside tasks that see all "
            "rows; a loss over the entire space sees them too."
        )
        return "label space", text, self._compare(f"--set task.{self.task}.loss=esmm")

    def _harm(self) -> str:
        gain = self.verdict.own
        return f"'{self.runs[0].name}': '{self.task}' loses {-gain.relative:.1%} of its {gain.metric} by sharing"

    def _bodies(self, *others: str) -> str:
        """The setting's own body and others to try beside it."""
        return ",".join(dict.fromkeys([str(self.runs[0].design["body"]), *others]))

    def _compare(self, change: str) -> str:
        """A command that puts the remedy beside what was run."""
        seeds = max(5, len({r.config.seed for r in self.runs}))
        return f"polytask compare {_source(self.runs[0])} {change} --seeds {seeds}"


def _source(run: Run) -> str:
    """The configuration a run came from: kept in its folder or in that of its comparison."""
    folders = [run.folder, run.folder.parent.parent] if run.folder else []
    return next((str(f / "config.toml") for f in folders if (f / "config.toml").exists()), "SETTINGS.toml")
