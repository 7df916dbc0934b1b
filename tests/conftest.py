"""For all tests: property tests have no deadline, since no test asserts a time and the machine may be busy; and as in every run, torch's
compiler is imported only where it is used: its import costs as much as torch's.
"""

from hypothesis import HealthCheck, settings

from ddp_trainer.resilience.compiler_import import postpone

postpone()

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
