import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from polytask import files
from polytask.data.batch import Feed, Part
from polytask.data.split import Split, split
from polytask.data.synthetic import synthetic
from polytask.errors import ConfigError, DataError, StateError, TrainingError
from polytask.evaluate import evaluate
from polytask.gradients import Programs
from polytask.nn.model import MultiTask
from polytask.record import Recorder
from polytask.replicas import Stack
from polytask.run import Run, TrainConfig
from polytask.schedule import SCHEDULES
from polytask.schema import Task
from polytask.train import fit, fit_many

PLAIN = partial(Programs, trace=False)
DATA = synthetic(users=40, items=60, rows=900, seed=6)
CUT = split(DATA, valid=0.1, test=0.1)
TRAIN, VALID, TEST = CUT.train, CUT.valid, CUT.test
CONFIG = TrainConfig(epochs=4, batch=144, lr=0.02, patience=0, checkpoint_steps=3)  # five steps an epoch
STEPS = 20


LIKED = Task("liked", "binary", positive="rating >= 3")
LOVED = Task("loved", "binary", positive="rating >= 4", given="liked", loss="escm_dr")


class Killed(BaseException):
    """Ends a training where it stands."""


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in their plain form: tracing takes longer than these trainings, and is tested elsewhere."""
    monkeypatch.setattr("polytask.train.Programs", partial(Programs, trace=False))


def build(part: Part = TRAIN, **options: Any) -> MultiTask:
    return MultiTask.build(part, **{"dim": 4, "tower": (5,)} | options)


def trained(config: TrainConfig = CONFIG, **options: Any) -> Run:
    return fit(build(), TRAIN, VALID, TEST, config=config, **options)


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    assert run.model is not None
    return {n: p.detach().clone() for n, p in run.model.named_parameters()}


def same(first: Run, second: Run) -> bool:
    one, two = weights_of(first), weights_of(second)
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


# The epoch that is kept, and when training stops.


def judged(history: list[dict[str, Any]], patience: int) -> tuple[int, int]:
    """By the stated rule for mrr (higher is better) and mse (lower): the kept epoch, and the last one."""
    curves = [[h["valid"]["watch"]["mrr"] for h in history], [-h["valid"]["rating"]["mse"] for h in history]]
    kept, stale = 0, 0
    for epoch in range(len(history)):
        best = [max(c[: epoch + 1]) for c in curves]
        short = [sum((b - c[e]) / abs(b) for b, c in zip(best, curves, strict=True)) for e in (kept, epoch)]
        kept, stale = (epoch, 0) if epoch == 0 or short[1] < short[0] else (kept, stale + 1)
        if 0 < patience <= stale:
            return kept + 1, epoch + 1
    return kept + 1, len(history)


def test_the_kept_epoch_is_the_joint_best_and_the_model_holds_its_weights() -> None:
    run = trained(replace(CONFIG, epochs=15, lr=0.05))
    assert (run.kept, len(run.history)) == judged(run.history, 0) and 1 < run.kept < 15
    assert run.model is not None and VALID is not None and TEST is not None
    for name, part in (("valid", VALID), ("test", TEST)):
        assert evaluate(run.model, part).to_dict() == run.history[run.kept - 1][name]
    assert evaluate(run.model, VALID).to_dict() != run.history[-1]["valid"]
    assert run.own == {t: run.best_epoch("valid", t) for t in ("watch", "rating")}


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_when_patience_is_over(patience: int) -> None:
    whole = trained(replace(CONFIG, epochs=15, lr=0.05))
    kept, last = judged(whole.history, patience)
    stopped = trained(replace(CONFIG, epochs=15, lr=0.05, patience=patience))
    assert last < 15 and stopped.history == whole.history[:last] and stopped.kept == kept


def test_without_validation_data_the_last_epoch_is_kept() -> None:
    run = fit(build(), TRAIN, test=TEST, config=replace(CONFIG, patience=1))
    assert (run.kept, len(run.history), run.own, run.parts()) == (4, 4, {}, ("test",))
    assert run.model is not None and TEST is not None
    assert evaluate(run.model, TEST).to_dict() == run.history[-1]["test"]


def test_what_the_test_data_says_changes_nothing() -> None:
    assert TEST is not None
    noise = torch.Generator().manual_seed(0)
    labels = torch.randn(TEST.labels.shape, generator=noise)
    labels[torch.rand(len(labels), generator=noise) < 0.5, 0] = float("nan")
    config = replace(CONFIG, epochs=12, lr=0.05, patience=3)
    plain = trained(config)
    noisy = fit(build(), TRAIN, VALID, replace(TEST, labels=labels), config=config)
    assert same(plain, noisy) and plain.kept == noisy.kept
    assert [h["valid"] for h in plain.history] == [h["valid"] for h in noisy.history]
    assert plain.history[0]["test"] != noisy.history[0]["test"]


def test_evaluating_more_often_changes_nothing() -> None:
    often, seldom, never = (
        fit(build(), TRAIN, None, test, config=replace(CONFIG, epochs=5, evaluate_every=every))
        for every, test in ((1, TEST), (5, TEST), (3, None))
    )
    assert same(often, seldom) and same(often, never)
    assert [h["epoch"] for h in seldom.history] == [5] and seldom.history == often.history[-1:]
    assert [h["epoch"] for h in never.history] == [3, 5]


def test_the_seed_decides_everything() -> None:
    first, again, other = (trained(replace(CONFIG, seed=s)) for s in (3, 3, 4))
    assert same(first, again) and first.history == again.history
    assert not same(first, other)
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert same(first, trained(replace(CONFIG, seed=3)))
    torch.set_rng_state(state)


SCRIPT = """
import json, torch
torch.set_num_threads(1)
from polytask.data.split import Split, split
from polytask.data.synthetic import synthetic
from polytask.nn.model import MultiTask
from polytask.run import TrainConfig
from polytask.train import fit
cut = split(synthetic(users=20, items=30, rows=200, seed=1), valid=0.1, test=0.1)
model = MultiTask.build(cut.train, dim=4, tower=(5,))
run = fit(model, cut.train, cut.valid, cut.test, config=TrainConfig(epochs=2, batch=80, lr=0.02))
print(json.dumps([run.history, {n: p.tolist() for n, p in model.named_parameters()}]))
"""


def test_the_order_of_pythons_hashes_changes_nothing() -> None:
    source = str(Path(files.__file__).parents[1])
    environments = [os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": source} for seed in ("0", "3")]
    running = [subprocess.Popen([sys.executable, "-c", SCRIPT], env=e, stdout=subprocess.PIPE) for e in environments]
    found = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0] and len(found) == 1


# What is recorded.


def test_losses_are_means_over_the_epochs_steps() -> None:
    run = trained(replace(CONFIG, epochs=1), weights={"watch": 0.25, "rating": 0.5})
    stack = Stack([build()], [CONFIG.lr], programs=PLAIN)
    feed = Feed([TRAIN], [0], 144, "uniform", unknown=CONFIG.unknown)
    steps = [stack.step(b, torch.tensor([[0.25, 0.5]]))[0] for b in feed.epoch(1)]
    watch, rating = torch.stack(steps).double().mean(dim=0).tolist()
    assert run.history[0]["train"] == pytest.approx(
        {"watch": watch, "rating": rating, "joint": 0.25 * watch + 0.5 * rating}
    )


def test_a_task_of_weight_0_is_neither_trained_nor_judged() -> None:
    run = trained(weights={"watch": 0.0, "rating": 1.0})
    assert (run.tasks, run.alone, run.shares) == (("rating",), "rating", False)
    assert [list(h["valid"]) for h in run.history] == [["rating"]] * 4
    assert set(run.history[0]["train"]) == {"rating", "joint"}
    assert run.kept == run.own["rating"]


def test_weights_come_from_the_schema_unless_they_are_given() -> None:
    tasks = tuple(replace(t, weight=w) for t, w in zip(DATA.schema.tasks, (0.25, 2.0), strict=True))
    part = split(replace(DATA, schema=replace(DATA.schema, tasks=tasks)), valid=0, test=0.1).train
    config = replace(CONFIG, epochs=1)
    assert fit(build(part), part, config=config).weights == {"watch": 0.25, "rating": 2.0}
    assert fit(build(part), part, config=config, weights={"rating": 0.5}).weights == {"watch": 0.25, "rating": 0.5}


def test_the_run_folder(tmp_path: Path) -> None:
    run = trained(folder=tmp_path / "first")
    folder = tmp_path / "first"
    assert run.folder == folder and run.name == "first"
    names = {p.name for p in folder.iterdir() if not p.name.startswith(("events", ".lock"))}
    assert {"run.json", "metrics.jsonl", "environment.json", "model", "checkpoints"} <= names
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == run.history
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["threads"] == torch.get_num_threads() and environment["torch"] == torch.__version__
    assert environment["data"] == {
        n: [p.fingerprint] for n, p in (("train", TRAIN), ("valid", VALID), ("test", TEST)) if p
    }
    files.verify_folder(folder / "model")
    stored = load_file(folder / "model/model.safetensors")
    assert stored.keys() == weights_of(run).keys()
    assert all(torch.equal(stored[n], p) for n, p in weights_of(run).items())
    assert len(list((folder / "checkpoints").glob("step-*"))) <= 2
    assert not list(tmp_path.rglob("*.tmp"))


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Every TensorBoard scalar of a folder by tag and step."""
    events = EventAccumulator(str(folder)).Reload()
    return {t: {e.step: e.value for e in events.Scalars(t)} for t in events.Tags()["scalars"]}


def test_tensorboard_holds_every_value_of_the_history(tmp_path: Path) -> None:
    run = trained(folder=tmp_path)
    expected: dict[str, dict[int, float]] = {}
    for record in run.history:
        flat = {f"train/{n}": v for n, v in record["train"].items()}
        for part in ("valid", "test"):
            flat |= {f"{part}/{t}/{m}": v for t, scores in record[part].items() for m, v in scores.items()}
        for tag, value in flat.items():
            expected.setdefault(tag, {})[record["epoch"]] = pytest.approx(value, rel=1e-6)
    assert {"train/joint", "valid/watch/mrr", "test/rating/mse"} <= expected.keys()
    assert scalars(tmp_path) == expected


@pytest.mark.parametrize("every", [1, 2])
def test_going_on_drops_nothing_from_tensorboard(tmp_path: Path, every: int) -> None:
    for _ in range(2):  # the second call finds a finished run
        run = trained(replace(CONFIG, evaluate_every=every), folder=tmp_path)
    mse = run.curve("valid", "rating", "mse")
    assert scalars(tmp_path)["valid/rating/mse"] == {e: pytest.approx(v, rel=1e-6) for e, v in mse.items()}


def test_a_run_reads_back_as_it_was(tmp_path: Path) -> None:
    run = trained(folder=tmp_path / "one", weights={"watch": 0.9, "rating": 0.1})
    again = Run.load(tmp_path / "one")
    plain = replace(again, design=run.design, model=run.model)
    assert asdict(replace(plain, model=None)) == asdict(replace(run, model=None, sources={}))
    assert again.design == json.loads(json.dumps(run.design))
    assert (again.schema, again.config, again.history) == (run.schema, run.config, run.history)


@pytest.mark.parametrize("content", [None, "{", ""])
def test_a_folder_without_a_finished_run_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(StateError, match="holds no finished run"):
        Run.load(tmp_path)


# Going on after a kill.


class Whole:
    """An uninterrupted run and what it leaves behind."""

    def __init__(self, folder: Path) -> None:
        self.run, self.folder = trained(folder=folder), folder
        self.tensors = (last_checkpoint(folder) / "state.safetensors").read_bytes()
        self.metrics = (folder / "metrics.jsonl").read_bytes()

    def check(self, folder: Path, run: Run) -> None:
        """``run`` ended in ``folder`` exactly where this one did."""
        assert same(run, self.run)
        assert (run.kept, run.own, run.history) == (self.run.kept, self.run.own, self.run.history)
        assert (last_checkpoint(folder) / "state.safetensors").read_bytes() == self.tensors
        assert (folder / "metrics.jsonl").read_bytes() == self.metrics
        assert (folder / "model/model.safetensors").read_bytes() == (
            self.folder / "model/model.safetensors"
        ).read_bytes()
        assert not list(folder.rglob("*.tmp"))


def last_checkpoint(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polytask.train.Programs", partial(Programs, trace=False))
        yield Whole(tmp_path_factory.mktemp("whole"))


def kill_at(steps: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """A progress callback, told of every step, that ends the training after ``steps``."""
    monkeypatch.setattr("polytask.train._REPORT_STEPS", 1)

    def progress(done: int, total: int) -> None:
        assert total == STEPS
        if done >= steps:
            raise Killed

    return progress


def killed(folder: Path, config: TrainConfig = CONFIG, **options: Any) -> None:
    recorder = Recorder([folder], folder / "checkpoints", **options)
    with pytest.raises(Killed):
        fit_many([build()], TRAIN, VALID, TEST, config=config, recorder=recorder)


@pytest.mark.parametrize("step", [0, 4, 7, 10, 19])
def test_a_run_killed_at_any_step_ends_where_it_would_have(
    step: int, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path, progress=kill_at(step, monkeypatch))
    assert not (tmp_path / "run.json").exists()
    whole.check(tmp_path, trained(folder=tmp_path))


def test_a_run_may_be_killed_again_and_again(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (4, 8, 12, 17):
        killed(tmp_path, progress=kill_at(step, monkeypatch))
    whole.check(tmp_path, trained(folder=tmp_path))


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_run_killed_as_it_records_an_epoch(
    epoch: int, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Recorder.epoch

    def record(self: Recorder, run: int, values: dict[str, Any]) -> None:
        usual(self, run, values)
        if values["epoch"] == epoch:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "epoch", record)
        killed(tmp_path)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == epoch
    whole.check(tmp_path, trained(folder=tmp_path))


@pytest.mark.parametrize("error", [Killed, OSError])
@pytest.mark.parametrize("place", ["manifest", "rename", "sync", "tensors"])
@pytest.mark.parametrize("nth", [1, 3])
def test_a_run_killed_inside_a_checkpoint(
    nth: int, place: str, error: type[BaseException], whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def failing(usual: Callable[..., Any], matches: Callable[..., bool]) -> Callable[..., Any]:
        def replaced(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += matches(*arguments)
            if calls == nth and matches(*arguments):
                calls += 1
                raise error(28, "No space left on device")
            return usual(*arguments, **options)

        return replaced

    def inside(path: Path, *_: Any) -> bool:
        return "step-" in str(path)

    def written(_: Any, path: Path) -> bool:
        return "step-" in str(path)

    with monkeypatch.context() as patch:
        if place == "manifest":
            patch.setattr(
                files,
                "_write_synced",
                failing(files._write_synced, lambda p, _: p.name == "manifest.json" and inside(p)),
            )
        elif place == "rename":
            patch.setattr(Path, "rename", failing(Path.rename, inside))
        elif place == "sync":
            patch.setattr(files, "_sync", failing(files._sync, inside))
        else:
            patch.setattr("polytask.checkpoint.save_file", failing(save_file, written))
        expected: type[BaseException] = Killed if error is Killed else StateError
        with pytest.raises(expected) as caught:
            trained(folder=tmp_path)
        assert error is Killed or "no space left on device" in str(caught.value)
    whole.check(tmp_path, trained(folder=tmp_path))


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "count"), [("state.safetensors", 1), ("state.json", 1), ("manifest.json", 1), ("state.safetensors", 2)]
)
def test_a_damaged_checkpoint_is_passed_over(
    name: str, count: int, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path, progress=kill_at(13, monkeypatch))
    found = sorted((tmp_path / "checkpoints").glob("step-*"))
    assert [p.name for p in found] == ["step-000000009", "step-000000012"]
    for path in found[-count:]:
        flip(path / name)
    whole.check(tmp_path, trained(folder=tmp_path))


@pytest.mark.parametrize("left", [0, 1])
def test_metrics_that_a_power_cut_took_are_written_again(
    left: int, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path, progress=kill_at(18, monkeypatch))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    path.write_bytes(b"".join(lines[:left]) + lines[left][:20])
    whole.check(tmp_path, trained(folder=tmp_path))


def test_a_finished_run_is_not_trained_again(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "copy")
    monkeypatch.setattr(Stack, "step", lambda *_: pytest.fail("a step was made"))
    whole.check(folder, trained(folder=folder))


def test_a_traced_run_goes_on_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polytask.train.Stack", Stack)
    complete = trained(folder=tmp_path / "complete")
    killed(tmp_path / "killed", progress=kill_at(8, monkeypatch))
    assert same(trained(folder=tmp_path / "killed"), complete)


def test_stopping_early_survives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, epochs=15, lr=0.05, patience=2)
    complete = trained(config, folder=tmp_path / "complete")
    last = complete.history[-1]["epoch"]
    assert last < 15
    monkeypatch.setattr("polytask.train._REPORT_STEPS", 1)

    def progress(done: int, total: int) -> None:
        if done >= 5 * last - 4:
            raise Killed

    killed(tmp_path / "killed", config, progress=progress)
    resumed = trained(config, folder=tmp_path / "killed")
    assert same(resumed, complete) and resumed.history == complete.history and resumed.kept == complete.kept


@pytest.mark.parametrize(
    ("change", "named"),
    [({"lr": 0.01}, "lr"), ({"seed": 1}, "seed"), ({"epochs": 9}, "epochs")],
)
def test_another_configuration_is_refused_unless_forced(
    change: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path, progress=kill_at(8, monkeypatch))
    other = replace(CONFIG, **change)
    with pytest.raises(StateError) as caught:
        trained(other, folder=tmp_path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    assert f"{named} = {getattr(CONFIG, named)}, now {change[named]}" in message and "force" in message
    recorder = Recorder([tmp_path], tmp_path / "checkpoints", force=True)
    (run,) = fit_many([build()], TRAIN, VALID, TEST, config=other, recorder=recorder)
    assert run.config == other and run.history[-1]["epoch"] == other.epochs


def test_other_data_weights_and_threads_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path, progress=kill_at(8, monkeypatch))
    with pytest.raises(StateError, match=r"weights.*watch = 1.0, now 0.5"):
        trained(folder=tmp_path, weights={"watch": 0.5})
    with pytest.raises(StateError, match="train = "):
        fit(build(), replace(TRAIN, labels=TRAIN.labels + 1), VALID, TEST, config=CONFIG, folder=tmp_path)
    with pytest.raises(StateError, match=r"dim = 4, now 8"):
        fit(build(dim=8), TRAIN, VALID, TEST, config=CONFIG, folder=tmp_path)
    monkeypatch.setattr("polytask.scale._PER_THREAD", 1)  # however small, a model is given all threads
    torch.set_num_threads(2)
    try:
        with pytest.raises(StateError, match="threads = 1, now 2"):
            trained(folder=tmp_path)
    finally:
        torch.set_num_threads(1)
    trained(folder=tmp_path)


def test_a_folder_in_use_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, polytask.files\n"
        "with polytask.files.lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(StateError, match=f"in use by process {holder.pid} on "):
            trained(folder=tmp_path)
        assert not (tmp_path / "metrics.jsonl").exists()
        holder.kill()
    trained(replace(CONFIG, epochs=1), folder=tmp_path)  # a killed holder leaves nothing to clean up


def test_checkpoints_in_use_leave_the_run_folder_free(tmp_path: Path) -> None:
    with files.lock(tmp_path / "checkpoints"):
        recorder = Recorder([tmp_path], tmp_path / "checkpoints")
        with pytest.raises(StateError, match="in use"):
            fit_many([build()], TRAIN, config=CONFIG, recorder=recorder)
        with files.lock(tmp_path):
            pass


# What is refused.


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"ratng": 1.0}, "weights: task 'ratng' is unknown. Did you mean 'rating'"),
        ({"rating": -0.1}, "none may be below 0"),
        ({"rating": 0.0, "watch": 0.0}, "at least one must be above"),
        ({"rating": float("nan")}, "weights"),
        ({"rating": float("inf")}, "weights"),
    ],
)
def test_weights_must_make_sense(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fit(build(), TRAIN, weights=weights, config=replace(CONFIG, epochs=1))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adan"}, "optimizer 'adan' is unknown. Did you mean 'adam'"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"negatives": "popular"}, "Did you mean 'popularity'"),
        ({"epochs": 0}, "train.epochs = 0 must be at least 1"),
        ({"batch": 0}, "train.batch = 0"),
        ({"seed": -1}, "train.seed = -1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"clip": -1.0}, "clip"),
        ({"weight_decay": float("inf")}, "weight_decay"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("models", "parts", "configs"),
    [
        ([build(), build(dim=8)], TRAIN, CONFIG),
        ([build(), build(share="separate")], TRAIN, CONFIG),
        ([build(), build()], TRAIN, [CONFIG, replace(CONFIG, batch=100)]),
        ([build(), build()], TRAIN, [CONFIG, replace(CONFIG, optimizer="sgd")]),
        ([build(), build()], [TRAIN, split(DATA, valid=0, test=0.1).train], CONFIG),
    ],
)
def test_what_cannot_be_one_stack_is_refused(models: Any, parts: Any, configs: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be one stack"):
        fit_many(models, parts, config=configs)


def test_one_value_for_all_or_one_per_model() -> None:
    with pytest.raises(ConfigError, match="3 values given for 2 models"):
        fit_many([build(), build()], [TRAIN] * 3, config=CONFIG)


def test_a_loss_that_is_not_finite_names_task_epoch_and_step(tmp_path: Path) -> None:
    labels = TRAIN.labels.clone()
    labels[:, 1] = 1e30
    with pytest.raises(TrainingError, match="epoch 1, step 1: loss of task 'rating' is inf") as caught:
        fit(build(), replace(TRAIN, labels=labels), VALID, config=CONFIG, folder=tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "run.json").exists()
    assert not list((tmp_path / "checkpoints").glob("step-*"))


# Schedules.


@pytest.mark.parametrize(
    ("name", "at"), [("constant", (1, 1, 1)), ("linear", (1, 0.5, 0)), ("cosine", (1, 0.505, 0.01))]
)
def test_a_schedule_begins_at_1_and_falls_to_its_end(name: str, at: tuple[float, float, float]) -> None:
    shape = SCHEDULES[name]
    assert [shape(done) for done in (0.0, 0.5, 1.0)] == pytest.approx(at)
    values = [shape(step / 100) for step in range(101)]
    assert values == sorted(values, reverse=True) and math.isfinite(sum(values))


def test_a_schedule_is_over_all_steps_of_all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    usual = Stack.step

    def step(self: Stack, batch: Any, balancing: Any, factor: float, *when: Any) -> torch.Tensor:
        seen.append(factor)
        return usual(self, batch, balancing, factor, *when)

    monkeypatch.setattr(Stack, "step", step)
    trained(replace(CONFIG, schedule="linear"))
    assert seen == pytest.approx([1 - step / STEPS for step in range(STEPS)])


def conditional(*tasks: Task) -> Split:
    return split(replace(DATA, schema=replace(DATA.schema, tasks=tasks)), valid=0.2, test=0.1)


def test_how_far_propensity_weights_carry_is_recorded_for_the_tasks_that_are_trained(tmp_path: Path) -> None:
    parts = conditional(LIKED, LOVED)
    config = replace(CONFIG, epochs=2)
    run = fit(build(parts.train), parts.train, parts.valid, config=config, folder=tmp_path)
    for record in run.history:
        use = record["propensity"]["loved"]
        assert set(record["propensity"]) == {"loved"} and set(use) == {"effective", "rows", "clipped"}
        assert 1 < use["effective"] <= use["rows"] < len(parts.valid or ())
        assert json.loads(json.dumps(record)) == record
    assert run.history[0]["propensity"] != run.history[1]["propensity"]
    liked = fit(build(parts.train), parts.train, parts.valid, weights={"loved": 0.0}, config=config)
    assert not any("propensity" in record for record in (*liked.history, *trained().history))


def test_a_calibration_without_validation_data_is_refused() -> None:
    parts = conditional(LIKED, replace(LOVED, loss="bce", calibrate="platt"))
    with pytest.raises(ConfigError, match="task 'loved': calibrate is fitted on validation data"):
        fit(build(parts.train), parts.train, config=CONFIG)


@pytest.mark.parametrize("label", [0.0, 1.0, math.nan])
def test_a_calibration_without_both_classes_is_refused_before_training(
    label: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = conditional(LIKED, replace(LOVED, loss="bce", calibrate="platt"))
    assert parts.valid is not None
    labels = parts.valid.labels.clone()
    labels[:, 1] = torch.where(labels[:, 0] == 1, label, 1 - label)  # those where the condition held are of one class
    valid = replace(parts.valid, labels=labels)
    model = build(parts.train)
    with monkeypatch.context() as patch:
        patch.setattr("polytask.train.Training.run", lambda _: pytest.fail("training began"))
        with pytest.raises(DataError, match=r"task 'loved' on valid: platt: .* needs rows of both classes") as caught:
            fit(model, parts.train, valid, config=CONFIG)
    assert "\n" not in str(caught.value)
    run = fit(model, parts.train, valid, weights={"loved": 0.0}, config=replace(CONFIG, epochs=1))
    assert run.calibration == {}
