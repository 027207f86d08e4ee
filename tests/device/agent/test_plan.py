"""What a device does next, from values alone."""

from __future__ import annotations

from dataclasses import replace

from toolchain.core.units import BackboneId, Unit
from toolchain.device.agent.plan import Plan, Step, Waiting, plan
from toolchain.device.agent.policy import Policy
from toolchain.device.store.state import (
    COMMITTED,
    Failed,
    Generation,
    Held,
    State,
    StoredFile,
)
from toolchain.trust.release import SignedFile, SignedRelease

OLD, NEW = "a" * 64, "b" * 64


def fits(letters: str) -> BackboneId:
    return BackboneId("net", f"sha256:{letters}", f"sha256:{letters}")


def held(unit: str, counter: int, backbone: str = OLD) -> Held:
    digest = f"sha256:{counter:064x}"
    file = StoredFile("file", digest, 1)
    return Held(
        unit=unit,
        counter=counter,
        digest=digest,
        state=COMMITTED,
        signed=True,
        files=(file,),
        fits=fits(backbone),
    )


def state(*releases: Held, failed: tuple[Failed, ...] = ()) -> State:
    units = {one.unit: one.digest for one in releases}
    generations = (Generation(1, units),) if units else ()
    current = len(generations)
    return State(
        held=releases, generations=generations, current=current, last=current, failed=failed
    )


def offer(
    unit: str, counter: int, backbone: str = OLD, *, withdrawn: bool = False
) -> SignedRelease:
    one = Unit.parse(unit)
    signed = Unit(kind=one.kind, name=one.name)
    digest = f"sha256:{counter:064x}"
    file = SignedFile(name=signed.manifest, digest=digest, size=1)
    name = "net"
    digests = f"sha256:{backbone}"
    return SignedRelease(
        unit=signed,
        counter=counter,
        expires="2027-01-01T00:00:00Z",
        files=() if withdrawn else (file,),
        backbone=BackboneId(name=name, weights_digest=digests, graph_digest=digests),
        bytes=1,
    )


def planned(before: State, *offers: SignedRelease, **policy: object) -> Plan:
    return plan(before, {str(one.unit): one for one in offers}, Policy(**policy))  # type: ignore[arg-type]


NET, CARS, TULIPS = "backbones/net", "domains/cars", "domains/tulips"
RUNS = state(held(NET, 1), held(CARS, 3), held(TULIPS, 5))


def test_nothing_new_is_nothing_to_do() -> None:
    assert planned(RUNS, offer(NET, 1), offer(CARS, 3), offer(TULIPS, 5)) == Plan((), ())


def test_domains_are_exchanged_one_by_one() -> None:
    cars, tulips = offer(CARS, 4), offer(TULIPS, 6)
    assert planned(RUNS, offer(NET, 1), cars, tulips).steps == (Step((cars,)), Step((tulips,)))


def test_an_older_release_is_no_step() -> None:
    assert planned(RUNS, offer(CARS, 2), offer(TULIPS, 5)).steps == ()


def test_the_first_domain_brings_its_backbone() -> None:
    net, cars = offer(NET, 1), offer(CARS, 1)
    done = planned(state(), net, cars, offer(TULIPS, 1), domains=("cars",))
    assert done == Plan((Step((net, cars)),), ())
    assert list(done.steps[0].changes) == [NET, CARS]


def test_a_device_without_wishes_does_nothing() -> None:
    assert planned(state(), offer(NET, 1), offer(CARS, 1)) == Plan((), ())


def test_a_new_backbone_waits_for_every_domain_that_runs() -> None:
    net, cars = offer(NET, 2, NEW), offer(CARS, 4, NEW)
    waiting = planned(RUNS, net, cars, offer(TULIPS, 5))
    assert waiting.steps == ()
    assert waiting.waiting == (Waiting(CARS, f"net waits for a release of {TULIPS} for it"),)
    tulips = offer(TULIPS, 6, NEW)
    assert planned(RUNS, net, cars, tulips).steps == (Step((net, cars, tulips)),)


def test_a_backbone_that_the_repository_lacks_is_waited_for() -> None:
    for others in ((), (offer(NET, 2, "c" * 64),)):
        done = planned(RUNS, offer(CARS, 4, NEW), offer(TULIPS, 5), *others)
        assert done == Plan((), (Waiting(CARS, "the repository lacks its backbone net"),))


def test_the_policy_keeps_a_backbone() -> None:
    offers = offer(NET, 2, NEW), offer(CARS, 4, NEW), offer(TULIPS, 6, NEW)
    done = planned(RUNS, *offers, backbone="other")
    assert done.steps == ()
    assert {one.reason for one in done.waiting} == {"the policy keeps other"}


def test_what_failed_is_not_tried_again_and_a_later_one_is() -> None:
    failed = Failed(
        unit=CARS, counter=4, digest=f"sha256:{4:064x}", reason="x", at="2026-01-01T00:00:00Z"
    )
    before = replace(RUNS, failed=(failed,))
    done = planned(before, offer(CARS, 4), offer(TULIPS, 5))
    assert done == Plan((), (Waiting(CARS, "release 4 failed here; a later one will be tried"),))
    assert planned(before, offer(CARS, 5), offer(TULIPS, 5)).steps == (Step((offer(CARS, 5),)),)
    # A failed release does not hold a whole new backbone back in silence.
    moved = planned(before, offer(NET, 2, NEW), offer(CARS, 4, NEW), offer(TULIPS, 6, NEW))
    assert moved.steps == ()
    assert any("waits for a release of domains/cars" in one.reason for one in moved.waiting)


def test_what_is_withdrawn_or_missing_is_told() -> None:
    done = planned(RUNS, offer(CARS, 9, withdrawn=True))
    assert done == Plan(
        (),
        (
            Waiting(CARS, "its publisher has withdrawn it; what is installed runs on"),
            Waiting(TULIPS, "the repository has no release of it"),
        ),
    )
