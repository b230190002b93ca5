import pytest

from polytask.errors import ConfigError, DataError, PolytaskError, StateError, TrainingError, did_you_mean


@pytest.mark.parametrize("kind", [ConfigError, DataError, StateError, TrainingError])
def test_every_error_can_be_caught_as_one(kind: type[PolytaskError]) -> None:
    with pytest.raises(PolytaskError, match="what to do"):
        raise kind("what happened, where; what to do")


@pytest.mark.parametrize(
    ("given", "near"), [("mmeo", "mmoe"), ("PLE", None), ("factorise", "factorize"), ("", None), ("zzz", None)]
)
def test_the_nearest_name_is_shown_if_one_is_near(given: str, near: str | None) -> None:
    found = did_you_mean("body", given, ["ple", "mmoe", "factorize"])
    hint = f" Did you mean '{near}'?" if near else ""
    assert found == f"body '{given}' is unknown.{hint} Known: factorize, mmoe, ple"


def test_names_may_come_from_a_dict_and_may_be_none() -> None:
    assert did_you_mean("loss", "mes", {"mse": 1}).endswith("Did you mean 'mse'? Known: mse")
    assert did_you_mean("task", "a", ()).startswith("task 'a' is unknown.")


def test_a_hostile_name_stays_on_one_line() -> None:
    found = did_you_mean("column", "a\nb\x1b[31m", ["a"])
    assert found.isprintable()
