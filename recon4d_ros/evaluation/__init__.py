"""Scores against the truth in a bag, frame by frame (`Evaluator`). runs/evaluate.py does it from a
run's folder."""

from recon4d_ros.evaluation.evaluator import Evaluator, History
from recon4d_ros.evaluation.report import format_report, nothing_tracked, nothing_usable

__all__ = ["Evaluator", "History", "format_report", "nothing_tracked", "nothing_usable"]
