"""The benchmark suite: polytask beside its peers, each in a process of its own.

    python bench/suite.py [WORKLOAD ...] [--quick | --full] [--rounds N] [--threads N] [--only NAME]
    python bench/suite.py --list
    python bench/suite.py --page

Without a workload all of them are run. Each run is kept as JSON in bench/history/, and docs/benchmarks.md is written
from the newest of each workload; runs with --quick or --only are shown alone: they prove that everything works.
"""

import argparse
import os
from dataclasses import replace

import history
import page
from case import PROFILES, Workload
from runner import Conditions, run
from workloads import WORKLOADS


def main() -> None:
    """Run what is asked for."""
    asked = _asked()
    if asked.list:
        for workload in WORKLOADS.values():
            print(f"{workload.name:<16} {workload.title}")
        return
    if not asked.page:
        conditions = Conditions(asked.profile, asked.rounds, asked.threads, asked.device, asked.limit)
        for name in asked.workloads or WORKLOADS:
            _measure(_chosen(WORKLOADS[name], asked.only), conditions, whole=not asked.only)
    page.write(WORKLOADS)


def _measure(workload: Workload, conditions: Conditions, *, whole: bool) -> None:
    if not workload.taking_part(conditions.profile):
        return
    print(f"\n{workload.name}: {workload.title} ({conditions.profile}, {conditions.threads} threads)", flush=True)
    record = run(workload, conditions)
    print("\n" + "\n".join(page.table(workload, record)))
    for line in page.verdicts(workload, record):
        print(line)
    if whole and conditions.profile != "quick":
        print(f"kept as {history.keep(record)}", flush=True)


def _chosen(workload: Workload, only: str) -> Workload:
    return replace(workload, contenders=tuple(c for c in workload.contenders if only.lower() in c.name.lower()))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="see --list")
    sizes = parser.add_mutually_exclusive_group()
    for profile in PROFILES:
        sizes.add_argument(f"--{profile}", dest="profile", action="store_const", const=profile)
    parser.set_defaults(profile="standard")
    parser.add_argument("--rounds", type=int, help="measurements of each contender; the round's number is the seed")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every contender")
    parser.add_argument("--device", default="cpu", help="contenders that have no such device are skipped")
    parser.add_argument("--limit", type=int, default=1800, help="seconds for one contender in one round")
    parser.add_argument("--only", default="", help="contenders whose name holds this")
    parser.add_argument("--list", action="store_true", help="name the workloads")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    asked = parser.parse_args()
    if unknown := [name for name in asked.workloads if name not in WORKLOADS]:
        parser.error(f"no workload '{unknown[0]}'; there are {', '.join(WORKLOADS)}")
    return asked


if __name__ == "__main__":
    main()
