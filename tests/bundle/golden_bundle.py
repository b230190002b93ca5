"""Makes the bundle under tests/golden that later versions must read: ``python tests/bundle/golden_bundle.py``.

A format is made once, by the version that introduced it, and then stays as it is; a new one gets a folder of its own.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from shipped import BUY, CLICK, FIELDS, PAST, STARS, WATCH, cut, finished

from polytask.bundle import Bundle
from polytask.calibration import Platt

GOLDEN = Path(__file__).parents[1] / "golden"
USERS = ["u0", "u7", "u14", "nobody"]


def answers(bundle: Bundle) -> dict[str, Any]:
    """What the bundle says to some questions."""
    lists = bundle.recommend(users=USERS, k=5)
    return {
        "lists": lists.to_dict(as_series=False),
        "similar": bundle.similar("i3", 3).to_dict(as_series=False),
        "history": bundle.history("u7", 5)["item"].to_list(),
        "search": bundle.search("item", "rose", 3)["item"].to_list(),
        "mix": bundle.recommend("u0", 3, mix="stars ** 2 * click")["item"].to_list(),
    }


def main(folder: Path) -> None:
    """Write the bundle and its answers into ``folder``."""
    parts = cut((replace(WATCH, head="dot"), STARS, CLICK, BUY), *FIELDS, PAST, valid=0.1, test=0.1)
    run = finished(parts, body="mmoe", options=(("layers", (4,)),), calibration={"click": Platt(1.5, -0.3)})
    path = Bundle.save(folder / "bundle-1", run, mix="0.5 * watch + 0.1 * stars", toml='name = "small"\n')
    (folder / "bundle-1.json").write_text(json.dumps(answers(Bundle.load(path)), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
