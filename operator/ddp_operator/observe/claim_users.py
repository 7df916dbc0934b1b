"""Which TrainingRun uses which PersistentVolumeClaim: one index, looked up from either side."""

from __future__ import annotations

from typing import Final

from ddp_operator.observe.shelf import Key

USERS_NAMED: Final = 16
"""TrainingRuns that a claim's `used_by` names at most."""


class ClaimUsers:
    """Runs and claims of the same namespace; what is used by nobody, and who uses nothing, takes no memory."""

    def __init__(self) -> None:
        self._claims_of_run: dict[Key, tuple[str, ...]] = {}
        self._runs_of_claim: dict[Key, set[str]] = {}

    def link(self, run: Key, claims: tuple[str, ...]) -> list[Key]:
        """A run uses just these claims from now on, by name; gives the claims that have one user more or less than before."""
        namespace, name = run
        before = self._claims_of_run.pop(run, ())
        if claims:
            self._claims_of_run[run] = claims
        changed = [(namespace, claim) for claim in {*before} ^ {*claims}]
        for claim in changed:
            users = self._runs_of_claim.setdefault(claim, set())
            users ^= {name}
            if not users:
                del self._runs_of_claim[claim]
        return changed

    def claims_of(self, run: Key) -> tuple[str, ...]:
        """The names of a run's claims, in the order in which they were given."""
        return self._claims_of_run.get(run, ())

    def runs_of(self, claim: Key) -> list[Key]:
        """All runs that use a claim, sorted."""
        return sorted((claim[0], name) for name in self._runs_of_claim.get(claim, ()))

    def named(self, claim: Key) -> tuple[str, ...]:
        """The first `USERS_NAMED` of them, by name."""
        return tuple(sorted(self._runs_of_claim.get(claim, ()))[:USERS_NAMED])

    def __contains__(self, claim: Key) -> bool:
        """Whether any run uses that claim."""
        return claim in self._runs_of_claim

    def __len__(self) -> int:
        """Runs with claims, and claims with runs: 0 when nothing is left."""
        return len(self._claims_of_run) + len(self._runs_of_claim)
