"""The end-to-end cases: each takes a release in a fresh namespace and yields rows of the table. What it promises is its docstring."""

from cases.bad_input import bad, config, full, names, no_operator
from cases.faults import drain, short, starting, train
from cases.gpus import gpu, health
from cases.guard import guard
from cases.installs import five, helm3, literal, manifests, model, restricted, two
from cases.network import network
from cases.operator_acts import deadline, hung, leftovers, paused, queued
from cases.operator_bounds import budget, no_progress, pending, preemptions
from cases.operator_faults import kills, leader_killed
from cases.operator_foreign import adopted, half_dead
from cases.operator_installs import everywhere, gone, heirs
from cases.operator_line import line
from cases.operator_nodes import node_lost
from cases.operator_outages import outages
from cases.operator_rights import audit
from cases.upgrades import overtaken, upgrade

ALL = (
    *(short, train, starting, drain, upgrade, overtaken, literal, helm3, restricted, manifests, model, two, guard, network, gpu, health),
    *(line, adopted, half_dead, paused, queued, deadline, hung, leftovers, gone, heirs, everywhere),
    *(kills, leader_killed, budget, preemptions, no_progress, pending, node_lost, audit, outages),
    *(bad, config, names, full, no_operator, five),
)
CASES = {case.__name__: case for case in ALL}
RESTRICTED = {"restricted"}
"""Whose namespace enforces that level of Pod Security."""
