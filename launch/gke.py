"""Units as JobSets of a Kubernetes cluster with Kueue: rendered and schema-checked here, not executed.

A unit is one JobSet (Kueue admits at most eight sets of pods together), on a TPU slice or on several. Options:

    --option=--image=IMAGE --option=--topology=v5p:4x4x4 --option=--queue=NAME [--option=--slices=2]
    [--option=--namespace=NAME] [--option=--service_account=NAME]

What ends a pod decides who pays. Exit codes 2 and 3 and what a node does to its pods (DisruptionTarget: preempted,
drained, lost) and 42 all fail the Job by its podFailurePolicy, at once; the message of the Job names the exit code, by
which the failurePolicy of the JobSet ends it for 2 and 3, and else starts it anew without counting. Any other failure
is counted, and ends it after FAILURES restarts. A node that dies without notice may first show as a failure of the
pods beside it, and is then counted (jobset#1117, xpk#99). For several slices GKE itself sets the MEGASCALE_* variables
of a JobSet whose Jobs have a node pool each:
docs.cloud.google.com/kubernetes-engine/docs/tutorials/tpu-multislice-kueue
"""

import hashlib
import json
import re
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from deeplearn.config import ConfigError, nearest
from deeplearn.preflight import chips, topology
from deeplearn.sweep.grid import Unit
from launch.backend import FAILURES, Job, Unreadable, unit_command

# The label of the node pools of each chip, and the chips of a machine in a slice of several machines.
# docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
POOLS = {
    "v4": ("tpu-v4-podslice", 4),
    "v5e": ("tpu-v5-lite-podslice", 4),
    "v5p": ("tpu-v5p-slice", 4),
    "v6e": ("tpu-v6e-slice", 4),
    "tpu7x": ("tpu7x", 4),
}
WHOLE = {("v5e", 8): 8, ("v6e", 8): 8}  # (chip, chips of a slice) -> those of the one machine that has them all
GRACE_S = 120  # between the signal to a pod and its end; the unit itself gives up before
PATIENCE_S = 120
SUBMISSION, UNIT = "deeplearn/submission", "deeplearn/unit"
OPTIONS = ("image", "topology", "queue", "slices", "namespace", "service_account")
SAFE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def render(units: Sequence[Unit], job: Job) -> str:
    return yaml.safe_dump_all((_jobset(unit.id, job) for unit in units), sort_keys=False, width=120)


def validate(text: str) -> str:
    """Check against the schemas of Kubernetes and of JobSet; no cluster is asked. Raises ConfigError."""
    try:
        import kubernetes_validate
        from kubeflow_trainer_api.models import JobsetV1alpha2JobSetSpec
    except ImportError as error:
        raise ConfigError(f"schemas are checked with {error.name}: pip install 'deeplearn[test]'") from None
    found = list(yaml.safe_load_all(text))
    for jobset in found:
        name = jobset["metadata"]["name"]
        try:
            parsed = JobsetV1alpha2JobSetSpec.from_dict(jobset["spec"]).to_dict()
            for part in jobset["spec"]["replicatedJobs"]:
                whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, **part["template"]}
                version = kubernetes_validate.latest_version()
                kubernetes_validate.validate(whole, version, strict=True)
        except (ValueError, TypeError, KeyError, kubernetes_validate.ValidationError) as error:
            told = str(getattr(error, "message", error)).splitlines()[0]
            raise ConfigError(f"JobSet {name} breaks its schema: {told}") from None
        if lost := _lost(jobset["spec"], parsed):
            raise ConfigError(f"JobSet {name} breaks its schema: it knows no {lost}")
    return f"{len(found)} JobSets keep the schemas of Kubernetes and of JobSet; no cluster was asked"


def submit(text: str, name: str) -> str:
    namespace = next(yaml.safe_load_all(text))["metadata"]["namespace"]
    _kubectl(["create", "-f", "-"], text)
    return f"{name} {namespace}"


def find(job: Job, units: Sequence[str]) -> str:
    del units
    handle = f"{job.name} {_options(job).get('namespace', 'default')}"
    return handle if _jobsets(handle) else ""


def live(handle: str) -> set[str]:
    return {
        item["metadata"]["annotations"][UNIT]
        for item in _jobsets(handle)
        if not item.get("status", {}).get("terminalState")
    }


def cancel(handle: str) -> None:
    name, namespace = handle.split()
    _kubectl(["delete", "jobsets", f"--namespace={namespace}", f"--selector={SUBMISSION}={_safe(name)}"])


def name_of(unit: str, job: Job) -> str:
    """The same each time, another for each unit, and short enough for the names of pods to follow from it."""
    return f"{_short(job.name, 32, 'dl')}-{_short(unit, 12, 'u')}"


def hosts(place: topology.Topology) -> tuple[str, int, int]:
    """(label of the node pool, machines of one slice, chips of one machine). Raises ConfigError."""
    chip, count = place.chip.name, place.chips // place.slices
    if chip not in POOLS:
        raise ConfigError(f"GKE has no TPU slices of chip {chip!r}{nearest(chip, POOLS)}")
    if len(place.sizes) != place.chip.dimensions:
        sizes = "x".join(map(str, place.sizes))
        raise ConfigError(f"GKE names slices of {chip} by {place.chip.dimensions} dimensions, not {sizes}")
    label, each = POOLS[chip]
    each = min(WHOLE.get((chip, count), each), count)
    if count % each:
        raise ConfigError(f"{count} chips of {chip} do not divide over machines of {each}")
    return label, count // each, each


def _jobset(unit: str, job: Job) -> dict[str, Any]:
    options = _options(job)
    slices = options.get("slices", "1")
    if not slices.isdecimal():
        raise ConfigError(f"--option=--slices takes a number, not {slices!r}")
    place = topology.parse(options["topology"], int(slices), chips.load())
    label, machines, each = hosts(place)
    several = machines * place.slices > 1
    job = job._replace(python="python")
    container = {
        "name": "unit",
        "image": options["image"],
        "command": unit_command(job, unit, f"--grace={GRACE_S - 20}", *(["--distributed"] if several else [])),
        "resources": {kind: {"google.com/tpu": each} for kind in ("requests", "limits")},
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": label,
            "cloud.google.com/gke-tpu-topology": "x".join(map(str, place.sizes)),
        },
        "containers": [container],
    }
    if "service_account" in options:
        pod["serviceAccountName"] = options["service_account"]
    fails = [
        {"action": "FailJob", "onExitCodes": {"containerName": "unit", "operator": "In", "values": [2, 3]}},
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"containerName": "unit", "operator": "In", "values": [42]}},
    ]
    spec = {
        "parallelism": machines,
        "completions": machines,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        **({"activeDeadlineSeconds": 60 * job.minutes} if job.minutes else {}),
        "podFailurePolicy": {"rules": fails},
        "template": {"spec": pod},
    }
    by_policy = {"onJobFailureReasons": ["PodFailurePolicy"]}
    rules = [
        {
            "name": "wrong_or_fenced",
            "action": "FailJobSet",
            **by_policy,
            "onJobFailureMessagePatterns": ["exit code (2|3) matching"],
        },
        {"name": "stopped", "action": "RestartJobSetAndIgnoreMaxRestarts", **by_policy},
        {"name": "late", "action": "FailJobSet", "onJobFailureReasons": ["DeadlineExceeded"]},
    ]
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name_of(unit, job),
            "namespace": options.get("namespace", "default"),
            "labels": {"kueue.x-k8s.io/queue-name": options["queue"], SUBMISSION: _safe(job.name)},
            "annotations": {UNIT: unit, "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "suspend": True,  # until Kueue admits it
            "failurePolicy": {"maxRestarts": FAILURES, "rules": rules},
            "replicatedJobs": [{"name": "u", "replicas": place.slices, "template": {"spec": spec}}],
        },
    }


def _options(job: Job) -> dict[str, str]:
    """The options by name. Raises ConfigError for one that is unknown, missing, or means more than it says."""
    found = {}
    for word in job.options:
        name, equals, value = word.removeprefix("--").partition("=")
        if name not in OPTIONS or not word.startswith("--") or not equals:
            raise ConfigError(f"an option for gke is --NAME=VALUE, not {word!r}{nearest(name, OPTIONS)}")
        found[name] = value
    if missing := [name for name in ("image", "topology", "queue") if not found.get(name)]:
        raise ConfigError(f"backend 'gke' needs --option=--{missing[0]}=...")
    for name in ("queue", "namespace", "service_account"):
        if name in found and not SAFE.fullmatch(found[name]):
            raise ConfigError(f"--option=--{name} takes a name of Kubernetes, not {found[name]!r}")
    if "://" not in job.root:
        raise ConfigError(
            f"--root={job.root}: pods see no folder of this machine; give a bucket, for example gs://name"
        )
    return found


def _short(text: str, most: int, start: str) -> str:
    """A part of a name: the text itself where it may be one, else made of it and its hash, the same each time."""
    if len(text) <= most and SAFE.fullmatch(text) and (start == "u" or text[0].isalpha()):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{start}{digest[: min(most - len(start), 20)]}"


def _safe(name: str) -> str:
    return _short(name, 63, "dl")


def _lost(given: Any, kept: Any, path: str = "") -> str:
    """The first setting that a parser of the schema has dropped, by its path; "" if it has kept all."""
    if isinstance(given, dict):
        if not isinstance(kept, dict):
            return path
        parts = ((kept.get(key), value, f"{path}.{key}".lstrip(".")) for key, value in given.items())
    elif isinstance(given, list):
        if not isinstance(kept, list) or len(kept) != len(given):
            return path
        parts = ((k, g, f"{path}[{i}]") for i, (k, g) in enumerate(zip(kept, given, strict=True)))
    else:
        return path if kept is None and given is not None else ""
    return next((lost for k, g, where in parts if (lost := _lost(g, k, where))), "")


def _jobsets(handle: str) -> list[dict[str, Any]]:
    name, namespace = handle.split()
    selector = f"--selector={SUBMISSION}={_safe(name)}"
    told = _kubectl(["get", "jobsets", f"--namespace={namespace}", selector, "--output=json"])
    try:
        return json.loads(told)["items"]
    except (ValueError, KeyError):
        raise Unreadable("Kubernetes does not answer as it should: kubectl gave no list of JobSets") from None


def _kubectl(words: list[str], text: str = "") -> str:
    """Run kubectl. Raises Unreadable if it fails, ConfigError if it is not here."""
    try:
        done = subprocess.run(["kubectl", *words], input=text, capture_output=True, text=True, timeout=PATIENCE_S)
    except FileNotFoundError:
        raise ConfigError("there is no kubectl here: backend 'gke' speaks to a cluster by it") from None
    except subprocess.TimeoutExpired:
        raise Unreadable(f"Kubernetes does not answer: kubectl took more than {PATIENCE_S} s") from None
    if done.returncode:
        raise Unreadable(f"Kubernetes does not answer as it should: kubectl said '{done.stderr.strip()}'")
    return done.stdout
