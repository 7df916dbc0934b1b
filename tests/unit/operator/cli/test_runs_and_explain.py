import re
import sys

import pytest
from stored_runs import EVENTS, FULL, HOSTILE, RUNS, Cluster, body, listed

import ddp_operator.act.api_client
import ddp_trainer.cli
from ddp_operator.api import crd
from ddp_operator.cli import cluster
from ddp_operator.cli.explain import advice_for, story
from ddp_operator.cli.runs import COLUMNS, cells, narrowed, rows, table
from ddp_operator.errors import ClusterError
from ddp_operator.observe.api import ApiError

TEAM = f"{RUNS}/namespaces/team-a/trainingruns"
NOW = 1_790_000_000.0


@pytest.fixture
def ddp(monkeypatch, capsys):
    """A function that runs `ddp` against some answers: its exit code and what it said."""

    def call(answers, *arguments):
        api = Cluster(answers)

        async def connect():
            return api

        monkeypatch.setattr(ddp_operator.act.api_client, "connect", connect)
        monkeypatch.setattr(sys, "argv", ["ddp", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            ddp_trainer.cli.main()
        assert api.is_closed
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


@pytest.fixture
def of_context(monkeypatch, tmp_path):
    """A kubeconfig whose context has a namespace of its own."""
    (tmp_path / "config").write_text(
        "{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: k, cluster: {server: 'http://127.0.0.1:1'}}], "
        "users: [{name: u, user: {}}], contexts: [{name: c, context: {cluster: k, user: u, namespace: team-a}}]}"
    )
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))


def test_runs_prints_kubectls_columns(ddp):
    code, out, _ = ddp({TEAM: listed(FULL, body("a"))}, "runs", "-n", "team-a")
    heading, first, second = out.splitlines()
    assert (code, heading.split()) == (0, list(COLUMNS))
    assert first.split()[:1] == ["a"]
    assert second.split()[:7] == ["resnet", "Restarting", "1200", "0.5/4", "0.91", "5,214", "1100"]


def test_the_columns_are_those_of_the_crd():
    assert [name.upper() for name, _, _, priority, _ in crd.COLUMNS if priority == 0] == list(COLUMNS[1:])


def test_runs_of_all_namespaces_have_a_column_for_it_and_come_page_by_page(ddp):
    pages = [listed(body("b", "team-b"), more="next"), listed(body("a", "team-a"))]
    code, out, _ = ddp({f"{RUNS}/trainingruns": pages}, "runs", "-A")
    assert (code, [line.split()[:2] for line in out.splitlines()]) == (0, [["NAMESPACE", "NAME"], ["team-a", "a"], ["team-b", "b"]])


@pytest.mark.usefixtures("of_context")
def test_without_a_namespace_the_contexts_is_taken(ddp):
    assert ddp({TEAM: listed(FULL)}, "runs")[0] == 0


async def test_a_kubeconfig_that_cannot_be_read_gives_the_default_namespace(monkeypatch, tmp_path):
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    assert await cluster.own_namespace() == "default"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ApiError(404, "the server could not find the requested resource"), "This cluster knows no TrainingRuns: install the chart"),
        (ApiError(403, "forbidden"), "You may not read this (forbidden): ask for get and list on trainingruns.ddp-operator.io"),
        (ApiError(401, "Unauthorized"), "The cluster does not accept the credentials of the kubeconfig: log in again"),
        (ApiError(0, "the connection failed"), "The cluster does not answer (the connection failed): check the network"),
        (ApiError(500, "etcd"), "The API server refused with 500 (etcd)"),
        (ClusterError("There is no way to the cluster."), "There is no way to the cluster."),
    ],
)
@pytest.mark.parametrize("command", [("runs",), ("explain", "resnet")])
def test_every_error_is_one_sentence(ddp, error, sentence, command):
    code, _, err = ddp({TEAM: error, f"{TEAM}/resnet": error}, *command, "-n", "team-a")
    assert (code, err.count("\n")) == (3, 1)
    assert err.startswith(f"ddp: {sentence}")


@pytest.mark.parametrize(
    ("name", "there", "hint"),
    [
        ("resnt", ["resnet", "resnet-2", "vit"], "there are resnet, resnet-2."),
        ("zzz", ["vit"], "there is vit."),
        ("zzz", [], "there is none at all; look with `ddp runs -A`."),
    ],
)
def test_a_run_that_is_not_there_is_answered_with_near_names(ddp, name, there, hint):
    code, _, err = ddp({TEAM: listed(*map(body, there))}, "explain", name, "-n", "team-a")
    assert (code, err) == (3, f"ddp: There is no TrainingRun {name} in namespace team-a; {hint}\n")


@pytest.mark.parametrize("name", ["../../../api/v1/secrets", "a b", "x" * 300, "ä"])
def test_a_name_that_cannot_be_one_is_never_sent(ddp, name):
    code, _, err = ddp({}, "explain", name, "-n", "team-a")
    assert code == 3
    assert "is no name in Kubernetes" in err


def test_explain_tells_what_happened_in_order_and_what_to_do(ddp):
    code, out, _ = ddp({f"{TEAM}/resnet": FULL, "/api/v1/namespaces/team-a/events": EVENTS}, "explain", "resnet", "-n", "team-a")
    assert code == 0
    assert re.match(
        r"resnet is Restarting for \S+ \(OOMKilled: worker-0 was killed above its memory limit\)\nstep 1200 of 9000, durable 1100\n", out
    )
    told = ["created", "first pod ran", "first step", "NodeLost", "trained again", "VolumeFilling", "newest durable step", "OOMKilled"]
    places = [out.index(f" {words} ", 150 if words == "OOMKilled" else 0) for words in told]
    assert places == sorted(places)
    assert "resnet-1-worker-2 on n1; at step 500, durable 480; the operator did: FreePods; n1 does not answer" in out
    assert "after 3m, 7 steps lost" in out
    assert "88 % used (3 times)" in out
    *_, sentence, command = out.rstrip().splitlines()
    assert sentence.startswith("What to do: It ran out of memory and goes on from its last state;")
    assert command == "  kubectl -n team-a describe pod resnet-1-worker-0"


def a_pod(replica, phase):
    kind, index = replica.split("-")
    job = "training.kubeflow.org"
    labels = {f"{job}/job-name": "resnet-1", f"{job}/replica-type": kind, f"{job}/replica-index": index}
    return {
        "metadata": {"name": f"resnet-1-{replica}", "namespace": "team-a", "uid": replica, "labels": labels},
        "status": {"phase": phase},
    }


@pytest.mark.parametrize(
    ("pods", "command"),
    [
        (listed(*(a_pod(f"worker-{i}", "Running") for i in range(11)), a_pod("worker-11", "Pending")), "describe pod resnet-1-worker-11"),
        (listed(a_pod("worker-0", "Running"), a_pod("master-0", "Running")), "describe pod resnet-1-master-0"),
        (listed(), "get pods -l training.kubeflow.org/job-name=resnet-1 -o wide"),
        (ApiError(403, "forbidden"), "get pods -l training.kubeflow.org/job-name=resnet-1 -o wide"),
    ],
)
def test_explain_looks_at_the_pod_that_waits_and_not_at_one_that_came_back_weeks_ago(ddp, pods, command):
    back = {"at": "2026-08-21T12:30:00Z", "recoveredAt": "2026-08-21T12:33:00Z", "cause": "NodeLost", "pod": "resnet-1-master-0"}
    answers = {f"{TEAM}/resnet": body(phase="Pending", reason="Unschedulable", ledger=[back]), "/api/v1/namespaces/team-a/events": listed()}
    _, out, _ = ddp(answers | {"/api/v1/namespaces/team-a/pods": pods}, "explain", "resnet", "-n", "team-a")
    assert out.rstrip().splitlines()[-1] == f"  kubectl -n team-a {command}"


def test_explain_does_not_list_the_pods_that_a_stop_has_taken():
    stopped = body(phase="Failed", reason="NoProgress", ledger=[{"at": "2026-09-21T12:30:00Z", "cause": "NoProgress", "action": "Stop"}])
    assert advice_for(stopped, []).command == "kubectl -n team-a describe trainingrun resnet"


def test_explain_does_not_say_nothing_while_the_volume_is_full_or_a_budget_is_only_reported():
    full = {"type": "StorageHealthy", "status": "False", "reason": "VolumeFull"}
    assert advice_for(body(phase="Running", conditions=[full])).sentence.startswith("The volume has no room")
    assert "only reported" in advice_for(body(phase="Running", overdue="RestartBudgetUsedUp")).sentence
    assert advice_for(body(phase="Running")).sentence == "Nothing: it trains."


def a_claim(name, **meta):
    return {
        "metadata": {"name": name, "namespace": "team-a", "uid": name, "labels": {"ddp-operator.io/run": "x"}, **meta},
        "status": {"phase": "Bound"},
    }


def a_job(claim):
    volume = {"persistentVolumeClaim": {"claimName": claim}}
    replicas = {"Master": {"template": {"spec": {"volumes": [volume]}}}}
    return {"metadata": {"name": "j", "namespace": "team-a", "uid": "j"}, "spec": {"pytorchReplicaSpecs": replicas}}


CLAIMS, JOBS = "/api/v1/namespaces/team-a/persistentvolumeclaims", "/apis/kubeflow.org/v1/namespaces/team-a/pytorchjobs"


def test_claims_that_no_run_uses_stand_in_a_line_beside_the_table(ddp):
    claims = listed(a_claim("resnet-checkpoints"), a_claim("of-a-job"), a_claim("going", deletionTimestamp="2026-09-21T12:00:00Z"),
                    a_claim("old-2"), a_claim("old-1"))  # fmt: skip
    code, out, err = ddp({TEAM: listed(FULL), CLAIMS: claims, JOBS: listed(a_job("of-a-job"))}, "runs", "-n", "team-a")
    assert (code, len(out.splitlines())) == (0, 2)
    assert err == (
        "Claims that no run uses: team-a/old-1, team-a/old-2; to be rid of one, with its checkpoints: kubectl -n team-a delete pvc old-1\n"
    )


@pytest.mark.parametrize("refused", [CLAIMS, JOBS])
def test_without_the_right_to_see_who_uses_a_claim_none_is_called_an_orphan(ddp, refused):
    answers = {TEAM: listed(FULL), CLAIMS: listed(a_claim("old")), JOBS: listed()}
    assert "old" in ddp(answers, "runs", "-n", "team-a")[2]
    code, out, err = ddp(answers | {refused: ApiError(403, "forbidden")}, "runs", "-n", "team-a")
    assert (code, len(out.splitlines()), err) == (0, 2, "")


def test_explain_works_without_the_right_to_read_events(ddp):
    answers = {f"{TEAM}/resnet": FULL, "/api/v1/namespaces/team-a/events": ApiError(403, "forbidden")}
    assert ddp(answers, "explain", "resnet", "-n", "team-a")[0] == 0


def test_a_terminal_never_gets_control_characters_or_markup(ddp):
    run = body(
        phase=HOSTILE, reason=HOSTILE, message=HOSTILE, ledger=[{"at": "2026-09-21T12:30:00Z", "cause": HOSTILE, "message": HOSTILE}]
    )
    for command in (("runs",), ("explain", "resnet")):
        _, out, _ = ddp({TEAM: listed(run), f"{TEAM}/resnet": run, "/api/v1/namespaces/team-a/events": listed()}, *command, "-n", "team-a")
        assert "\x1b" not in out
        assert "\x07" not in out
        assert "[bold red]x[/]" in out


@pytest.mark.parametrize(
    "odd",
    [
        *[None, 7, "x", [], {}],
        {"status": 3},
        {"metadata": []},
        {"status": {"ledger": {"a": 1}, "conditions": [1, None]}},
        {"status": {"ledger": [{"at": "yesterday"}, {"at": True}], "checkpoint": {"savedAt": "9999-99"}}},
    ],
)
def test_odd_objects_are_shown_as_far_as_they_go(odd):
    assert len(cells(odd, NOW)) == len(COLUMNS)
    assert story(odd, [odd]) == []
    assert advice_for(odd).sentence


def test_a_status_of_a_newer_operator_is_still_shown():
    run = body(phase="Levitating", progress={"step": 5, "altitude": 3})
    assert cells(run, NOW)[1:3] == ("Levitating", "5")
    assert advice_for(run).sentence


def test_the_table_for_a_terminal_says_so_when_there_is_nothing():
    assert str(table([], "team-a", NOW, 80)) == "No training runs in namespace team-a. Look everywhere with -A."
    assert rows([], None, NOW) == [("NAMESPACE", *COLUMNS)]


def test_a_narrow_terminal_loses_columns_and_no_names():
    lines = rows([FULL], "team-a", NOW)
    assert narrowed(lines, 200) == lines
    assert [set(COLUMNS) - set(narrowed(lines, width)[0]) for width in (85, 70)] == [{"SAMPLES/S"}, {"SAMPLES/S", "EPOCH"}]
    assert narrowed(lines, 1)[0] == ("NAME", "PHASE", "STEP", "ETA")


async def test_watch_goes_on_after_a_failed_list(monkeypatch, capsys):
    from ddp_operator.cli import runs as command

    class DoneError(Exception):
        pass

    api = Cluster({TEAM: [listed(FULL), ApiError(0, "gone for a moment"), listed(body("newcomer")), DoneError()]})
    monkeypatch.setattr(command, "WATCH_SECONDS", 0)
    with pytest.raises(DoneError):
        await command._watch(api, "team-a")
    out = capsys.readouterr().out
    assert "newcomer" in out
