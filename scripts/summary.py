"""Adds up test reports and prints what was skipped and why. Usage: summary.py REPORT.xml ..."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def main(paths: list[str]) -> int:
    """Exit status: 1 when a test failed, a report is missing, or nothing ran."""
    passed = failed = 0
    skipped: Counter[str] = Counter()
    for path in paths:
        if not Path(path).exists():
            print(f"{path} is missing: that part of the tests did not run to its end")
            failed += 1
            continue
        for case in ElementTree.parse(path).iter("testcase"):
            skip = case.find("skipped")
            if skip is not None:
                skipped[skip.get("message", "no reason given")] += 1
            elif case.find("failure") is not None or case.find("error") is not None:
                failed += 1
            else:
                passed += 1
    print("\nskipped  why")
    for reason, count in skipped.most_common():
        print(f"{count:7d}  {reason}")
    if not skipped:
        print("      0  nothing was skipped")
    print(f"\n{passed} passed, {failed} failed, {sum(skipped.values())} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
