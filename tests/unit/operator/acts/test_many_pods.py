"""Of a job with more pods than a status can remember, what is done to any of them is told, once, and asked for once a minute."""

from simulated_job import SimulatedJob

from ddp_operator.decide.decision import DeletePod


def nothing_goes(_action):
    pass


def big():
    job = SimulatedJob(workers=299)
    job.pass_time(10)
    return job


def test_a_freed_pod_beyond_the_memory_has_an_entry_and_an_event_once():
    job = big()
    assert "worker-99" not in job.status.incarnations
    job._apply = nothing_goes
    job.lose_node("worker-99")
    job.pass_time(20 + 30)
    assert {action.pod for action in job.done(DeletePod)} == {"demo-worker-99"}
    assert len(job.done(DeletePod)) == 1
    assert [row[:2] for row in job.ledger()] == [("NodeLost", "FreePods")]
    assert job.told().count("PodsFreed") == 1
    assert "worker-99" in job.status.incarnations
    assert len(job.status.incarnations) == 256


def test_more_freed_pods_than_can_be_remembered_are_told_once():
    job = big()
    job._apply = nothing_goes
    for replica in list(job.pods):
        job.lose_node(replica)
    job.pass_time(20 + 10)
    assert len({action.pod for action in job.done(DeletePod)}) == 300
    assert [row[:2] for row in job.ledger()] == [("NodeLost", "FreePods")]
    assert job.told().count("PodsFreed") == 300
