"""Two bundles of one data set that answer differently."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "bundle"))  # its small finished runs serve here too


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of two bundles; the second one's model is the first one's turned around."""
    from shipped import CLICK, FIELDS, STARS, WATCH, cut, finished

    from polytask.bundle import Bundle

    folder = tmp_path_factory.mktemp("bundles")
    run = finished(cut((WATCH, STARS, CLICK), *FIELDS))
    first = Bundle.save(folder / "first", run)
    assert run.model is not None
    for parameter in run.model.parameters():
        parameter.data.neg_()
    return first, Bundle.save(folder / "second", run)
