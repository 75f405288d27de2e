"""Two tiers of tests: `make test` takes the quick values of a parameter, `make test-all` all of them."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def long(*values: Any) -> list[Any]:
  """Values of a parameter that `make test-all` alone takes."""
  return [pytest.param(value, marks=pytest.mark.long) for value in values]


def tiers(quick: Collection[Any], all_of_them: Iterable[Any]) -> list[Any]:
  """All values of a parameter, of which `make test` takes the quick ones."""
  return [param for value in all_of_them for param in ([value] if value in quick else long(value))]
