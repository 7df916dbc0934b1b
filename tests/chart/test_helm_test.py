"""The pod of `helm test`: where it may run, whom it may ask, and what it makes of the answers."""

import http.server
import socket
import subprocess
import sys
import threading

import pytest
from chart import CHART, case_values, pods, template

SCRIPT = CHART / "files/read_progress.py"


def pod(render):
    return render.one("Pod")


def test_it_gets_the_environment_and_the_nodes_of_the_run_but_no_gpu(tmp_path):
    render = template(tmp_path, case_values("everything"))
    spec, trainer = pod(render)["spec"], dict(pods(render.objects))["Worker"]["spec"]
    for key in ("nodeSelector", "tolerations", "priorityClassName", "schedulerName", "imagePullSecrets", "securityContext"):
        assert spec[key] == trainer[key], key
    for key in ("resourceClaims", "runtimeClassName", "affinity", "topologySpreadConstraints", "initContainers"):
        assert key not in spec
    for container in spec["containers"]:
        assert container["env"] == [{"name": "NCCL_DEBUG", "value": "WARN"}]
        assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]
        assert container["resources"] == {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}


def test_a_taint_of_gpu_nodes_does_not_keep_it_from_the_nodes_it_is_sent_to(tmp_path):
    assert "nvidia.com/gpu" in {toleration["key"] for toleration in pod(template(tmp_path, {}))["spec"]["tolerations"]}


def test_it_is_no_pod_of_the_run_and_may_read_rank_0s_progress(tmp_path):
    render = template(tmp_path, {})
    labels = pod(render)["metadata"]["labels"]
    assert "ddp-operator.io/run" not in labels  # which the notes select by, and the NetworkPolicy opens every port to
    rules = render.one("NetworkPolicy")["spec"]["ingress"]
    assert {
        "from": [{"podSelector": {"matchLabels": {"ddp-operator.io/test-of": labels["ddp-operator.io/test-of"]}}}],
        "ports": [{"port": "telemetry", "protocol": "TCP"}],
    } in rules


@pytest.mark.parametrize(("topology", "first"), [("master", "master-0"), ("workers", "worker-0")])
def test_it_asks_the_pod_of_rank_0(topology, first, tmp_path):
    render = template(tmp_path, {"topology": topology})
    (progress,) = [container for container in pod(render)["spec"]["containers"] if container["name"] == "progress"]
    script, host = progress["args"]
    assert host == f"{render.one('PyTorchJob')['metadata']['name']}-{first}"
    assert script.strip() == SCRIPT.read_text().strip()


# --- the script -----------------------------------------------------------------------------------------------------------------------


def read(host, port, seconds=1):
    command = [sys.executable, "-c", SCRIPT.read_text(), host, str(port), str(seconds)]  # as the pod runs it
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.fixture
def agent():
    class Agent(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_GET(self):
            self.send_response(self.status if self.path == "/progress" else 404)
            self.end_headers()
            self.wfile.write(b'{"step": 7}')

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Agent)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield Agent, server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [200, 503])
def test_a_pod_that_answers_passes_whether_it_trains_yet_or_not(agent, status):
    agent[0].status = status
    done = read("127.0.0.1", agent[1])
    assert (done.returncode, done.stdout) == (0, f'127.0.0.1 answers with {status}: {{"step": 7}}\n')


def test_a_pod_that_does_not_run_is_not_judged():
    done = read("ddp-demo-master-0.invalid", 9400)
    if "Temporary failure" in done.stderr:
        pytest.skip("this machine has no name server, so a name cannot be known to be unknown")
    assert done.returncode == 0
    assert "does not run (yet, or any more)" in done.stdout


def test_a_pod_that_runs_and_is_silent_fails_with_where_to_look():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        done = read("127.0.0.1", closed.getsockname()[1])
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "see its log, and which NetworkPolicies select it" in done.stderr
