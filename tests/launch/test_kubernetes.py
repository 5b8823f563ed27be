"""JobSets and printed commands: valid by their schemas, of hostile names too; no cluster is here to run them."""

import os
import re
import shlex

import pytest
import yaml

from deeplearn.config import ConfigError
from deeplearn.sweep.grid import Unit
from launch import backend, gke, queued
from launch.backend import Job, Unreadable

HOSTILE = ["a'; touch /tmp/x; '", "$(reboot)", "<script>", "x" * 300, "\u0130\n", "--flag", "../../up", "A.B_c", ""]
GKE = ("--image=eu.gcr.io/p/deeplearn:1", "--topology=v5p:4x4x4", "--queue=tpus")
QUEUED = ("--zone=us-east5-a", "--type=v5p-8", "--runtime=v2-alpha-tpuv5")


def unit(name):
    return Unit(name, "fit", None, 1, 1, 1, 1.0)


def job(*options, **more):
    fields = {"name": "dl-quickstart-0a1b2c3d", "root": "gs://bucket/sweep", "python": "/x/python", "code": "/x"}
    return Job(**{**fields, "logs": "/x/logs", "options": options, **more})


def rendered(*options, **more):
    return yaml.safe_load(gke.render([unit("0123456789ab")], job(*GKE, *options, **more)))


def test_a_unit_is_a_jobset_with_a_pod_for_each_machine_of_its_slice():
    found = rendered(minutes=90)
    [part] = found["spec"]["replicatedJobs"]
    spec = part["template"]["spec"]
    pod = spec["template"]["spec"]
    assert (part["replicas"], spec["parallelism"], spec["completions"]) == (1, 16, 16)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    [container] = pod["containers"]
    words = ["python", "-m", "launch.unit", "--root=gs://bucket/sweep", "--unit=0123456789ab"]
    assert container["command"] == [*words, "--grace=100", "--distributed"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "tpus"
    assert spec["activeDeadlineSeconds"] == 5400 and pod["terminationGracePeriodSeconds"] > 100


@pytest.mark.parametrize(
    ("shape", "slices", "machines", "each"),
    [("v5p:2x2x1", 1, 1, 4), ("v5e:2x4", 1, 1, 8), ("v6e:4x4", 1, 4, 4), ("v5p:4x4x4", 2, 16, 4), ("v5e:1x1", 1, 1, 1)],
)
def test_machines_follow_from_the_topology(shape, slices, machines, each):
    [part] = rendered(f"--topology={shape}", f"--slices={slices}")["spec"]["replicatedJobs"]
    [container] = part["template"]["spec"]["template"]["spec"]["containers"]
    assert part["replicas"] == slices and part["template"]["spec"]["parallelism"] == machines
    assert container["resources"]["requests"]["google.com/tpu"] == each
    assert ("--distributed" in container["command"]) == (machines * slices > 1)


def outcome(jobset, code=None, disrupted=False):
    """What the controllers do when a pod ends: the Job's rules in their order, then the JobSet's."""
    rules = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(rules):
        by_code = code in rule.get("onExitCodes", {}).get("values", ())
        if by_code or (disrupted and "onPodConditions" in rule):
            reason = "PodFailurePolicy"
            why = f"failed with exit code {code}" if by_code else "has condition DisruptionTarget"
            message = f"Container unit for pod default/x-42 {why} matching {rule['action']} rule at index {index}"
            break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            return rule["action"]
    return "RestartJobSet"


def test_exit_codes_and_preemption_are_kept_apart():
    jobset = rendered()
    assert [outcome(jobset, code) for code in (2, 3)] == ["FailJobSet"] * 2
    assert outcome(jobset, 42) == outcome(jobset, 143, disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"
    assert [outcome(jobset, code) for code in (1, 134)] == ["RestartJobSet"] * 2
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == backend.FAILURES


def test_names_from_hostile_ones_are_valid_different_and_stable():
    units = [unit(name) for name in (*HOSTILE, "0123456789ab")]
    texts = [gke.render(units, job(*GKE, name=name)) for name in HOSTILE]
    assert gke.render(units, job(*GKE, name=HOSTILE[0])) == texts[0]
    names = []
    for text in texts:
        assert "keep the schemas" in gke.validate(text)
        for found, given in zip(yaml.safe_load_all(text), units, strict=True):
            assert found["metadata"]["annotations"]["deeplearn/unit"] == given.id
            pod = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
            assert f"--unit={given.id}" in pod["containers"][0]["command"]
            names.append(found["metadata"]["name"])
            assert re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])", names[-1]) and len(f"{names[-1]}-u-99-9999-abcde") <= 63
            assert re.fullmatch("[a-z0-9-]{1,63}", found["metadata"]["labels"]["deeplearn/submission"])
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("replicas:", "replica:"), ("maxRestarts", "maxRestart"), ("podFailurePolicy", "podFailurePolicies"),
        ("nodeSelector", "nodeSelectors"), ("onJobFailureMessagePatterns", "onJobFailureMessages"),
        ("parallelism: 16", "parallelism: many"), ("action: FailJobSet", "actions: FailJobSet"),
    ],
)  # fmt: skip
def test_a_misspelt_key_is_caught(right, wrong):
    text = gke.render([unit("a1")], job(*GKE))
    assert right in text
    with pytest.raises(ConfigError, match="JobSet dl-quickstart-0a1b2c3d-a1 breaks its schema"):
        gke.validate(text.replace(right, wrong))


@pytest.mark.parametrize(
    ("module", "options", "root", "told"),
    [
        (gke, GKE[1:], "gs://b", "needs --option=--image"),
        (gke, (*GKE, "--topolgy=x"), "gs://b", "did you mean 'topology'"),
        (gke, (*GKE, "--queue=a b"), "gs://b", "a name of Kubernetes"),
        (gke, (*GKE, "--topology=h100:8"), "gs://b", "no TPU slices of chip 'h100'"),
        (gke, (*GKE, "--topology=v5p:4x4"), "gs://b", "by 3 dimensions"),
        (gke, (*GKE, "--slices=two"), "gs://b", "takes a number"),
        (gke, GKE, "/disk", "give a bucket"),
        (queued, QUEUED, "/disk", "give a bucket"),
        (queued, QUEUED[1:], "gs://b", "needs --option=--zone"),
    ],
)
def test_a_wrong_option_is_one_sentence(module, options, root, told):
    with pytest.raises(ConfigError, match=told):
        module.render([unit("a1")], job(*options, root=root))


def kubectl(tmp_path, monkeypatch, script):
    (tmp_path / "kubectl").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.parametrize("script", ["echo no route to host >&2; exit 1", "echo '<html>'", "echo '{}'"])
def test_a_cluster_that_does_not_answer_never_means_that_nothing_runs(tmp_path, monkeypatch, script):
    kubectl(tmp_path, monkeypatch, script)
    with pytest.raises(Unreadable, match="Kubernetes does not answer"):
        gke.live("dl-x default")


def test_no_kubectl_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="there is no kubectl here"):
        gke.live("dl-x default")


@pytest.mark.parametrize("name", HOSTILE)
def test_printed_commands_are_the_words_that_were_meant(name):
    """What the machine's shell gets is quoted twice: by the outer shell's rules, and by its own."""
    text = queued.render([unit(name)], job(*QUEUED, "--spot", name=name, root=f"gs://b/{name}"))
    assert text.startswith("# Printed, not executed.\n")
    words = shlex.split(text.partition("\n")[2])
    creates, deletes = words.index("create"), words.index("delete")
    assert words[: creates + 1] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", words[creates + 1]) and len(words[creates + 1]) < 62
    assert words[creates + 1] == words[deletes + 1]
    [command] = [word for word in words if word.startswith("--command=")]
    there = shlex.split(command.removeprefix("--command="))
    trains = ["python3", "-m", "launch.unit", f"--root=gs://b/{name}", f"--unit={name}", "--distributed"]
    assert there == ["cd", "deeplearn", "&&", *trains]
