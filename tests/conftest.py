"""For all tests: property tests have no deadline, since no test asserts a time and the machine may be busy; and as in every run, torch's
compiler is imported only where it is used: its import costs as much as torch's.

Files with real runs, which wait for much, are spread evenly among the others, which compute: workers that take file after file then use all
cores all the time; and the longest, those that train, come first. xdist's own order, most tests first, would leave nearly all of the real
runs to the end, where they wait together.

No test sees the kubeconfig of who runs it, nor helm's own variables: `helm template` writes the namespace of the current context into what
it renders, so that reviewed renders would differ on a machine whose context is not in `default`; and no test may reach a real cluster by
accident. Tests against a server name their own kubeconfig.
"""

import os

from hypothesis import HealthCheck, settings

from ddp_trainer.resilience.compiler_import import postpone

postpone()

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

for name in [name for name in os.environ if name.startswith(("HELM_KUBE", "HELM_NAMESPACE"))]:
    del os.environ[name]
os.environ["KUBECONFIG"] = os.devnull


def pytest_configure(config):
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    files = dict.fromkeys(item.path for item in items)
    with_runs = [path for path in reversed(files) if "integration" in path.parts]
    others = [path for path in files if path not in with_runs]
    place = {path: (index / len(kind), path) for kind in (with_runs, others) for index, path in enumerate(kind)}
    items.sort(key=lambda item: place[item.path])
