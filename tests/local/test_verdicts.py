"""What settled each class: the cheapest level that proves it, in seconds that add up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from local_nets import network
from torch import Tensor

from admm_lip import CertificateError, certify
from admm_lip.local import (
    LocalCertificate,
    LocalConfig,
    certify_local,
    class_proofs,
    local_radii,
    quadratic_search,
    verify_local,
)
from admm_lip.local.config import ASKED, SETTLED

MODEL = network("relu", (60, 24, 16, 4), seed=2)
X = torch.randn(60, 60, generator=torch.Generator().manual_seed(0)).double()
Y: Tensor = MODEL(X).argmax(1)
Y[:4] = (Y[:4] + 1) % 4  # wrong ones
RADIUS = 0.5
# From cheap to dear, each with what the cheaper ones do.
CASCADE = ("norms", "quadratic", "tuned", "closed")


def found(level: str, **more: Any) -> LocalCertificate:
    return certify_local(MODEL, X, RADIUS, Y, config=LocalConfig(level, **more))


@pytest.mark.parametrize("level", ["masked", *CASCADE])
def test_what_is_settled_is_what_is_robust(level: str) -> None:
    every, decided = found(level), found(level, decide=True)
    for one in (every, decided):
        assert one.settled is not None
        assert torch.equal(one.settled > 0, one.robust)
        assert int(one.settled.max()) <= SETTLED.index(level)
        assert one.decided[:4] == ["wrong"] * 4
        counts = {row["settled_by"]: row["rows"] for row in one.by_level()}
        assert sum(counts.values()) == 60
        assert counts == {name: one.decided.count(name) for name in one.decided}
        verify_local(one, MODEL)
    given_up = every.robust & ~decided.robust  # an estimate may give a sample up
    assert not bool((decided.robust & ~every.robust).any())
    assert level == "masked" or not bool(given_up.any())


def test_every_level_of_the_cascade_settles_something_here() -> None:
    assert set(found("tuned", decide=True).decided) >= {"norms", "tuned", "open", "wrong"}
    robust = [int(found(level, decide=True).robust.sum()) for level in CASCADE]
    assert robust == sorted(robust)
    assert robust[0] < robust[2]


def test_what_holds_for_all_inputs_goes_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = certify(MODEL, kind="pairwise", progress=False)
    config = LocalConfig("tuned", decide=True)
    taken = []
    prove = class_proofs.prove
    monkeypatch.setattr(
        class_proofs, "prove", lambda t, r, **m: (taken.append(len(r)), prove(t, r, **m))[1]
    )
    one = certify_local(MODEL, X, 0.05, Y, certificate=pairs, config=config)
    assert one.decided.count("global") > 10
    assert sum(taken) == 60 - 4 - one.decided.count("global")
    verify_local(one, MODEL, pairs)


def test_seconds_are_those_of_the_steps_a_sample_took_part_in() -> None:
    one = found("tuned", decide=True)
    assert one.seconds is not None
    seconds = {row["settled_by"]: row["seconds_each"] for row in one.by_level()}
    assert 0.0 < seconds["wrong"] < seconds["norms"] < seconds["tuned"]


def test_the_record_keeps_them(tmp_path: object) -> None:
    one = found("tuned")
    one.save(f"{tmp_path}/one.safetensors")
    again = LocalCertificate.load(f"{tmp_path}/one.safetensors")
    assert again.decided == one.decided
    assert torch.equal(again.seconds, one.seconds)  # type: ignore[arg-type]
    assert again.table() == one.table()


def test_a_level_out_of_range_is_refused() -> None:
    one = found("norms")
    with pytest.raises(CertificateError, match="settled: expected indices of"):
        replace(one, settled=torch.full((60,), len(SETTLED), dtype=torch.int8))
    with pytest.raises(CertificateError, match="seconds: expected finite numbers >= 0"):
        replace(one, seconds=torch.full((60,), -1.0, dtype=torch.float64))


def test_a_search_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a second later: what was proven by then stands."""
    clock = iter(range(10**6))
    monkeypatch.setattr(quadratic_search.time, "monotonic", lambda: float(next(clock)))
    steps = []
    step = quadratic_search._Search.step
    monkeypatch.setattr(
        quadratic_search._Search, "step", lambda self: (steps.append(0), step(self))[1]
    )
    short = found("tuned", decide=True, seconds=10.0 / 60.0, steps=1000)
    assert 0 < len(steps) < 12
    assert torch.equal(short.robust | found("quadratic").robust, short.robust)
    verify_local(short, MODEL)


def test_no_time_leaves_what_lines_prove() -> None:
    none = found("closed", decide=True, seconds=0.0)
    assert torch.equal(none.robust, found("norms", decide=True).robust)
    assert set(none.decided) == {"norms", "open", "wrong"}


def test_radii_name_their_level_too() -> None:
    config = LocalConfig("tuned", rounds=3)
    one = local_radii(MODEL, X[:8], Y[:8], config=config)
    assert one.settled is not None and one.seconds is not None
    assert torch.equal(one.settled > 0, one.radius > 0.0)
    assert len(set(one.seconds.tolist())) == 1  # a batch is searched together
    assert set(one.decided) <= {*ASKED, "wrong"}
