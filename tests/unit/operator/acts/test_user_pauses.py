"""A pause of the user's is no loss: what comes after it is a start."""

from simulated_job import SimulatedJob


def phases_of(job, seconds):
    seen = []
    for _ in range(seconds):
        job.pass_time(1)
        if not seen or seen[-1] != job.status.phase.value:
            seen.append(job.status.phase.value)
    return seen


def test_after_a_pause_of_the_user_it_starts_and_is_not_said_to_restart():
    job = SimulatedJob()
    job.pass_time(30)
    assert job.status.phase == "Running"
    job.user_changes(suspend=True)
    assert set(phases_of(job, 60)) <= {"Running", "Saving", "Suspended"}
    job.user_changes(suspend=False)
    seen = phases_of(job, 60)
    assert seen[-1] == "Running"
    assert "Restarting" not in seen
    assert job.ledger() == []


def test_a_loss_after_the_pause_is_a_restart_again():
    job = SimulatedJob()
    job.pass_time(30)
    job.user_changes(suspend=True)
    job.pass_time(60)
    job.user_changes(suspend=False)
    job.pass_time(60)
    job.delete_pod("worker-0")
    assert "Restarting" in phases_of(job, 30)
