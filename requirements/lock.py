"""Print the exact versions of all that the tests install, direct and indirect.

    python requirements/lock.py > requirements/test.lock        # after an upgrade that passes all tests
    pip install -c requirements/test.lock -e ".[executor,app,test]"

Read from what is installed, by following the requirements of epplan; no registry is asked.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("executor", "app", "test")


def locked(extras: tuple[str, ...] = EXTRAS) -> dict[str, str]:
    """Return the installed version of every package that epplan with some extras needs, by name."""
    found: dict[str, str] = {}
    queue = [("epplan", frozenset(extras))]
    seen = set()
    while queue:
        name, wanted = queue.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # of another platform, or optional and not installed
        found[name] = package.version.partition("+")[0]  # torch 2.13.0+cpu and 2.13.0 are one release
        for text in package.requires or ():
            requirement = Requirement(text)
            markers = [requirement.marker is None or requirement.marker.evaluate({"extra": e}) for e in (*wanted, "")]
            if any(markers):
                queue.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    found.pop("epplan")
    return dict(sorted(found.items()))


def main() -> None:
    """Print the lock."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    lines = [f"{name}=={number}" for name, number in locked().items()]
    head = f"# epplan[{','.join(EXTRAS)}] on Python {python}, {sys.platform}; made by requirements/lock.py"
    sys.stdout.write("\n".join([head, *lines]) + "\n")


if __name__ == "__main__":
    main()
