"""`make prove`: the exactness conditions of the laws, proved; for each refusal, a case that shows it is needed."""

from __future__ import annotations

import sys
import time

from tests.prove import statements

LAWS = {
    "compose": statements.compose,
    "add": lambda: statements.parallel(False),
    "embed (common lattice)": statements.lattice,
    "transposed, stride 1": statements.transposed,
}


def main() -> int:
    """Prove all; the number of laws that are wrong."""
    bad = 0
    for name, prove in LAWS.items():
        start = time.time()
        found = prove()
        print(f"{name}: {found.proved} statements proved, {len(found.wrong)} wrong, {time.time() - start:.0f} s")
        for witness in found.wrong[:3]:
            print(f"  wrong: {witness}")
        for code, witness in found.refused.items():
            shown = "no counterexample found" if witness is None else f"needed, or off at {witness}"
            print(f"  refuses {code.value}: {shown}")
        bad += bool(found.wrong)
    return bad


if __name__ == "__main__":
    sys.exit(main())
