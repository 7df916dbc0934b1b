"""Everything that ends the operator, or a command of it, with a sentence: what is wrong, where, and what to do."""

from __future__ import annotations


class OperatorError(Exception):
    """The text is the whole message for the user; no trace is printed."""

    exit_code = 1


class SettingsError(OperatorError):
    """The settings cannot be used."""

    exit_code = 2


class ClusterError(OperatorError):
    """The API server cannot be used: unreachable, forbidden, or without the CRD."""

    exit_code = 3
