"""Makes the golden hashes of generated code; run by hand when a change of kernels was meant.

``PYTHONPATH=tests python tests/golden/make_kernels.py``
"""

from __future__ import annotations

import kernel_replay


def main() -> None:
    found = kernel_replay.hashes(kernel_replay.plans())
    if kernel_replay.GOLDEN.exists():
        print("\n".join(kernel_replay.differences(found, kernel_replay.read())) or "nothing changed")
    kernel_replay.write(found)
    print(f"{sum(map(len, found.values()))} hashes in {kernel_replay.GOLDEN}")


if __name__ == "__main__":
    main()
