"""Hostile metadata of thieves of keys, each made by the function that is named after the attack.

Almost every signature is right. ``SIGNED`` maps the name to the function and to the words that the
agent has to say: each attack is refused for its own reason.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from tests.support import samples
from tests.support.forged import Change, Forger
from tests.support.trusted import CARS, FLOWERS

Make = Callable[[Forger], Any]


class Attack(NamedTuple):
    make: Make
    says: str


SIGNED: dict[str, Attack] = {}


def registered(attacks: dict[str, Attack], says: str) -> Callable[[Make], Make]:
    """Register an attack together with the words of its refusal."""

    def register(make: Make) -> Make:
        attacks[make.__name__] = Attack(make, says)
        return make

    return register


# Metadata of a role, edited and signed again


def put(*path: Any, value: Any) -> Change:
    def edit(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return edit


def _edited(role: str, edit: Change, forger: Forger) -> None:
    forger.change(role, edit)


def unit(*path: Any, value: Any) -> Change:
    return put("targets", CARS.target(CARS.manifest), *path, value=value)


def _renamed(path: str) -> Change:
    return lambda signed: signed["targets"].__setitem__(
        path, signed["targets"].pop(CARS.target(CARS.manifest))
    )


def _delegations(*names: str, **fields: Any) -> dict[str, Any]:
    role = {"keyids": ["0" * 64], "threshold": 1, "terminating": True, "paths": ["*"], **fields}
    return {"keys": {}, "roles": [{"name": name, **role} for name in names]}


def _first_role(**fields: Any) -> Change:
    return lambda signed: signed["delegations"]["roles"][-1].update(fields)


def _more(times: int) -> Change:
    """List units without end, each as it should be."""

    def edit(signed: dict[str, Any]) -> None:
        first = signed["delegations"]["roles"][0]
        signed["delegations"]["roles"] += [
            {**first, "name": f"domain-d{at}", "paths": [f"domains/d{at}/*"]} for at in range(times)
        ]

    return edit


def _deep(value: Any, times: int) -> Any:
    for _ in range(times):
        value = [value]
    return value


_KIT = {"length": 1, "hashes": {"sha256": "0" * 64}}
for _name, _says, _role, _edit in (
    ("release_of_another_unit", "got one that says", "domain-cars",
     put("unit", value=str(FLOWERS))),
    ("release_of_a_path", "got one that says", "domain-cars", put("unit", value="domains/../x")),
    ("release_of_no_unit", "got one that says None", "domain-cars", lambda s: s.pop("unit")),
    ("release_that_delegates", "delegates further", "domain-cars",
     put("delegations", value=_delegations("domain-flowers"))),
    ("delegation_cycle", "top-level role names", "domain-cars",
     put("delegations", value=_delegations("targets"))),
    ("delegation_to_itself", "delegates further", "domain-cars",
     put("delegations", value=_delegations("domain-cars"))),
    ("file_of_another_unit", "what belongs to it", "domain-cars",
     put("targets", "domains/flowers/bundle.json", value=_KIT)),
    ("file_with_a_path", "what belongs to it", "domain-cars",
     put("targets", "domains/cars/../x.json", value=_KIT)),
    ("file_of_the_root", "what belongs to it", "domain-cars",
     put("targets", "/etc/passwd", value=_KIT)),
    ("file_of_no_name", "what belongs to it", "domain-cars", put("targets", "", value=_KIT)),
    ("manifest_under_another_name", "what belongs to it", "domain-cars",
     _renamed("domains/cars/x.json")),
    ("kit_of_a_domain", "what belongs to it", "domain-cars",
     put("targets", "domains/cars/kit-orin.json", value=_KIT)),
    ("kit_with_a_path", "what belongs to it", "backbone-resnet20",
     put("targets", "backbones/resnet20/kit-../../x.json", value=_KIT)),
    ("kit_with_escape_codes", "what belongs to it", "backbone-resnet20",
     put("targets", "backbones/resnet20/kit-\x1b[2J.json", value=_KIT)),
    ("kit_of_no_digest", "expected a sha256", "backbone-resnet20",
     put("targets", "backbones/resnet20/kit-b.json", value={**_KIT, "hashes": {"sha256": "../"}})),
    ("kit_of_a_gigabyte", "at most 16777216 bytes", "backbone-resnet20",
     put("targets", "backbones/resnet20/kit-orin.json", value={**_KIT, "length": 1 << 30})),
    ("kit_without_its_backbone", "among its files", "backbone-resnet20",
     lambda s: s.update(targets={"backbones/resnet20/kit-orin.json": _KIT})),
    ("kits_without_end", "at most 64 files", "backbone-resnet20",
     lambda s: s["targets"].update({f"backbones/resnet20/kit-b{i}.json": _KIT for i in range(70)})),
    ("manifest_of_a_gigabyte", "at most 16777216 bytes", "domain-cars",
     unit("length", value=1 << 30)),
    ("manifest_of_a_negative_size", "Length must be >= 0", "domain-cars",
     unit("length", value=-1)),
    ("manifest_of_a_true_size", "whole number", "domain-cars", unit("length", value=True)),
    ("manifest_of_2_to_the_60", "whole number", "domain-cars", unit("length", value=2**60)),
    ("digest_with_a_path", "expected a sha256", "domain-cars",
     unit("hashes", value={"sha256": "../../../../etc/passwd"})),
    ("digest_of_another_kind_alone", "expected a sha256", "domain-cars",
     unit("hashes", value={"sha1": "0" * 40})),
    ("digest_that_is_a_list", "Hashes must be", "domain-cars", unit("hashes", value=[])),
    ("release_without_its_backbone", "custom", "domain-cars",
     lambda s: s["targets"][CARS.target(CARS.manifest)].pop("custom")),
    ("release_with_an_unknown_word", "custom.run: unknown key", "domain-cars",
     unit("custom", "run", value="rm")),
    ("release_of_another_schema", "custom.schema: expected", "domain-cars",
     unit("custom", "schema", value="da3.release/9")),
    ("release_of_negative_bytes", "custom.bytes: expected", "domain-cars",
     unit("custom", "bytes", value=-1)),
    ("backbone_with_a_path", "custom.backbone.name: expected", "domain-cars",
     unit("custom", "backbone", "name", value="../x")),
    ("backbone_that_is_a_list", "custom.backbone", "domain-cars",
     unit("custom", "backbone", value=[])),
    ("release_for_another_backbone", "lacks its backbone", "domain-cars",
     unit("custom", "backbone", "graph_digest", value=samples.ZERO)),
    ("release_whose_time_is_over", "is expired", "domain-cars",
     put("expires", value="2026-05-31T00:00:00Z")),
    ("release_that_ended_in_1970", "is expired", "domain-cars",
     put("expires", value="1970-01-01T00:00:00Z")),
    ("release_that_never_ends", "does not match", "domain-cars",
     put("expires", value="99999-01-01T00:00:00Z")),
    ("release_of_a_day_that_never_was", "day is out of range", "domain-cars",
     put("expires", value="2027-02-30T00:00:00Z")),
    ("counter_beyond_2_53", "got v1152921504606846976", "domain-cars",
     put("version", value=2**60)),
    ("counter_of_zero", "version must be > 0", "domain-cars", put("version", value=0)),
    ("counter_that_is_text", "not supported between", "domain-cars", put("version", value="9")),
    ("counter_that_the_snapshot_does_not_say", "Expected domain-cars v2, got v7", "domain-cars",
     put("version", value=7)),
    ("root_in_the_place_of_a_release", "cannot be read", "domain-cars",
     put("_type", value="root")),
    ("version_of_tuf_unheard_of", "Unsupported spec_version", "domain-cars",
     put("spec_version", value="9.0.0")),
    ("release_of_a_megabyte", "metadata is too large", "domain-cars",
     put("x", value="x" * (1 << 20))),
    ("release_of_deep_lists", "custom.x: unknown key", "domain-cars",
     unit("custom", "x", value=_deep(0, 400))),
    ("notes_without_end", "custom", "domain-cars",
     unit("custom", "x", value={f"{i}": 0 for i in range(20000)})),
    ("targets_with_files_of_its_own", "delegates only", "targets",
     put("targets", "domains/cars/bundle.json", value=_KIT)),
    ("targets_with_hash_bins", "hash bins", "targets",
     lambda s: s.update(delegations={"keys": {}, "succinct_roles": {
         "keyids": [], "threshold": 1, "bit_length": 4, "name_prefix": "bin"}})),
    ("targets_for_everything", "expected the paths", "targets", _first_role(paths=["*"])),
    ("targets_that_does_not_end_there", "expected the paths", "targets",
     _first_role(terminating=False)),
    ("targets_for_no_unit", "DelegationError", "targets", _first_role(name="everything")),
    ("targets_for_a_unit_that_is_a_number", "DelegationError", "targets", _first_role(name=7)),
    ("targets_for_a_unit_with_a_path", "DelegationError", "targets",
     _first_role(name="domain-../x", paths=["domains/../x/*"])),
    ("targets_without_a_threshold", "MalformedError", "targets", _first_role(threshold=0)),
    ("targets_of_units_without_end", "at most 2048 units", "targets", _more(2100)),
    ("targets_without_delegations", "no release of it", "targets", lambda s: s.pop("delegations")),
    ("targets_of_keys_of_no_kind", "MalformedError", "targets",
     lambda s: s["delegations"]["keys"].update({"0" * 64: []})),
    ("fleet_that_is_a_list", "MalformedError", "targets", put("fleet", value=[])),
    ("fleet_of_a_key_that_is_none", "MalformedError", "targets", put("fleet", value={"x": 1})),
    ("snapshot_that_loses_a_role", "has lost a role", "snapshot",
     lambda s: s["meta"].pop("domain-cars.json")),
    ("snapshot_of_an_older_release", "version must be > 0", "snapshot",
     put("meta", "domain-cars.json", value={"version": 0})),
    ("snapshot_of_another_digest", "MixedError", "snapshot",
     put("meta", "targets.json", value={"version": 1, "hashes": {"sha256": "0" * 64}})),
    ("snapshot_of_a_role_that_is_not_there", "RepositoryError", "snapshot",
     put("meta", "targets.json", value={"version": 9})),
    ("snapshot_whose_time_is_over", "ExpiredError", "snapshot",
     put("expires", value="2026-05-31T00:00:00Z")),
    ("timestamp_of_no_time", "timestamp.issued", "timestamp", lambda s: s.pop("issued")),
    ("timestamp_of_the_year_9999", "ExpiredError", "timestamp",
     put("issued", value="9999-12-31T23:59:59Z")),
    ("timestamp_of_another_zone", "timestamp.issued", "timestamp",
     put("issued", value="2026-06-01T12:00:00+01:00")),
    ("timestamp_whose_time_is_over", "ExpiredError", "timestamp",
     put("expires", value="2026-05-31T00:00:00Z")),
    ("timestamp_of_two_snapshots", "MalformedError", "timestamp",
     put("meta", value={"a.json": {"version": 1}, "b.json": {"version": 1}})),
    ("timestamp_of_a_snapshot_of_2_to_the_60", "RepositoryError", "timestamp",
     put("meta", "snapshot.json", value={"version": 2**60})),
    ("timestamp_of_17_kib", "TooLargeError", "timestamp", put("x", value="x" * (17 << 10))),
):  # fmt: skip
    SIGNED[_name] = Attack(partial(_edited, _role, _edit), _says)


@registered(SIGNED, "Multiple signatures")
def signatures_without_end(forger: Forger) -> None:
    """Each would cost a check."""
    _, signed = forger.newest("domain-cars")
    data = forger.sign({**signed, "version": 2}, "domain-cars")
    many = b'{"signatures": [' + b'{"keyid": "0", "sig": "00"},' * 20000
    forger.put("domain-cars", data.replace(b'{"signatures": [', many))


@registered(SIGNED, "signed by 0/1 keys")
def release_of_another_key(forger: Forger) -> None:
    _, signed = forger.newest("domain-cars")
    forger.put("domain-cars", forger.sign({**signed, "version": 2}, "backbone-resnet20"))


@registered(SIGNED, "UnsignedError")
def root_of_one_key(forger: Forger) -> None:
    _, signed = forger.newest("root")
    signed["version"] = 2
    text = forger.sign(signed, "snapshot")
    forger.file("metadata/2.root.json", text)


@registered(SIGNED, "one of them twice")
def root_of_one_key_under_two_names(forger: Forger) -> None:
    _, signed = forger.newest("root")
    role = signed["roles"]["timestamp"]
    (old,) = role["keyids"]
    signed["keys"]["f" * 64] = signed["keys"][old]
    role["keyids"] = [old, "f" * 64]
    forger.put("root", forger.sign({**signed, "version": 2}, "root"))


@registered(SIGNED, "RollbackError")
def root_that_skips_a_version(forger: Forger) -> None:
    _, signed = forger.newest("root")
    forger.put("root", forger.sign({**signed, "version": 5}, "root"))


@registered(SIGNED, "without")
def root_without_consistent_snapshots(forger: Forger) -> None:
    _, signed = forger.newest("root")
    forger.put("root", forger.sign({**signed, "version": 2, "consistent_snapshot": False}, "root"))


@registered(SIGNED, "ExpiredError")
def root_whose_time_is_over(forger: Forger) -> None:
    _, signed = forger.newest("root")
    over = {**signed, "version": 2, "expires": "2026-05-31T00:00:00Z"}
    forger.put("root", forger.sign(over, "root"))
