from pathlib import Path
from typing import Any

import pytest
import torch

from polytask.checkpoint import Checkpoint, newest, require_same, save
from polytask.errors import StateError

IDENTITY = {"configuration": {"lr": 0.1, "epochs": 3}, "threads": 1}


def state(step: int, **options: Any) -> Checkpoint:
    tensors = {"a": torch.full((2, 3), float(step)), "count": torch.tensor(step), "empty": torch.zeros(0, 4)}
    return Checkpoint(
        **{"step": step, "tensors": tensors, "rest": {"epoch": 1, "x": 0.1}, "identity": IDENTITY} | options
    )


def steps(folder: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in folder.glob("step-*"))


def test_a_checkpoint_reads_back_as_it_was(tmp_path: Path) -> None:
    save(tmp_path, state(7))
    found = newest(tmp_path, IDENTITY)
    assert found is not None
    assert (found.step, found.rest, found.identity) == (7, {"epoch": 1, "x": 0.1}, IDENTITY)
    expected = state(7).tensors
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(t, expected[n]) and t.dtype == expected[n].dtype for n, t in found.tensors.items())


def test_a_transposed_tensor_keeps_its_values(tmp_path: Path) -> None:
    value = torch.arange(6.0).view(2, 3).t()
    save(tmp_path, state(1, tensors={"a": value}))
    found = newest(tmp_path, IDENTITY)
    assert found is not None and torch.equal(found.tensors["a"], value)


def test_there_may_be_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere", IDENTITY) is None
    (tmp_path / "step-000000001").mkdir()
    (tmp_path / "step-000000002").write_bytes(b"")
    assert newest(tmp_path, IDENTITY) is None


def test_the_newest_is_found_and_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 99, 100, 1_000_000_000):
        save(tmp_path, state(step))
    assert steps(tmp_path) == [100, 1_000_000_000]
    found = newest(tmp_path, IDENTITY)
    assert found is not None and found.step == 1_000_000_000


def test_a_step_saved_twice_is_replaced(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save(tmp_path, state(5, rest={"epoch": epoch}))
    found = newest(tmp_path, IDENTITY)
    assert steps(tmp_path) == [5] and found is not None and found.rest == {"epoch": 2}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_is_never_written(tmp_path: Path, value: float) -> None:
    save(tmp_path, state(1))
    with pytest.raises(StateError, match="step 2: a is not finite"):
        save(tmp_path, state(2, tensors={"a": torch.tensor([1.0, value])}))
    assert steps(tmp_path) == [1]


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, state(step))
    path = tmp_path / "step-000000002/state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    found = newest(tmp_path, IDENTITY)
    assert found is not None and found.step == 1
    (tmp_path / "step-000000001/manifest.json").unlink()
    assert newest(tmp_path, IDENTITY) is None


def test_an_empty_manifest_proves_nothing(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, state(step))
    (tmp_path / "step-000000002/manifest.json").write_text("{}")
    (tmp_path / "step-000000002/state.safetensors").unlink()
    found = newest(tmp_path, IDENTITY)
    assert found is not None and found.step == 1


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"configuration": {"lr": 0.2, "epochs": 3}, "threads": 1}, "configuration lr = 0.1, now 0.2"),
        ({"configuration": {"lr": 0.1, "epochs": 3}, "threads": 2}, "threads 1, now 2"),
        ({"configuration": {"lr": 0.1}, "threads": 1}, "epochs = 3, now None"),
        (IDENTITY | {"data": "x"}, "data None, now x"),
    ],
)
def test_another_identity_is_refused_unless_forced(tmp_path: Path, wanted: dict[str, Any], said: str) -> None:
    save(tmp_path, state(3))
    with pytest.raises(StateError) as caught:
        newest(tmp_path, wanted)
    assert said in str(caught.value) and "--force" in str(caught.value) and "\n" not in str(caught.value)
    forced = newest(tmp_path, wanted, force=True)
    assert forced is not None and forced.step == 3


def test_equal_identities_pass(tmp_path: Path) -> None:
    require_same(tmp_path, IDENTITY, dict(reversed(IDENTITY.items())))
