"""A run against the truth in its bag: live, frame by frame (`Evaluator`), or from the run's folder afterwards (`evaluate_run`)."""
from recon4d_ros.evaluation.evaluator import Evaluator, History
from recon4d_ros.evaluation.folder import evaluate_run
from recon4d_ros.evaluation.report import format_report, nothing_usable

__all__ = ["Evaluator", "History", "evaluate_run", "format_report", "nothing_usable"]
