"""Measures what sparsity costs, on tokens that are read one by one in decode, as a user's are."""

from clada.evaluation.artefact import evaluate_artefact
from clada.evaluation.evaluate import Evaluation, evaluate
from clada.evaluation.paired import PairedDifference, paired_difference
from clada.evaluation.session_subject import SessionSubject
from clada.evaluation.settings import Settings
from clada.evaluation.subject import Reading, Subject, SubjectInfo
from clada.evaluation.suite import Suite, prepare

__all__ = [
    "Evaluation",
    "PairedDifference",
    "Reading",
    "SessionSubject",
    "Settings",
    "Subject",
    "SubjectInfo",
    "Suite",
    "evaluate",
    "evaluate_artefact",
    "paired_difference",
    "prepare",
]
