"""The public names, loaded on first use so that importing the package costs nothing: see docs/api.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit import moved
from toolkit.base.offline import stay_home

__version__ = "0.1.0"

moved.install()
stay_home()

_HOMES = {
    "AlignmentError": "errors:AlignmentError",
    "Card": "core.cards:Card",
    "CardError": "errors:CardError",
    "Combination": "blending.combination:Combination",
    "Competition": "workspace.competition:Competition",
    "CompetitionError": "errors:CompetitionError",
    "DataError": "errors:DataError",
    "DeviceError": "errors:DeviceError",
    "Execution": "inference.execution:Execution",
    "FakeSession": "runtime.session:FakeSession",
    "ImageError": "errors:ImageError",
    "METRICS": "core.metrics:METRICS",
    "Metric": "core.metrics:Metric",
    "ModelError": "errors:ModelError",
    "Output": "core.cards:Output",
    "ParityError": "errors:ParityError",
    "Predictions": "core.predictions:Predictions",
    "Preprocess": "core.cards:Preprocess",
    "Session": "runtime.session:Session",
    "Split": "workspace.split:Split",
    "SplitError": "errors:SplitError",
    "StoreError": "errors:StoreError",
    "SubmissionError": "errors:SubmissionError",
    "ToolkitError": "errors:ToolkitError",
    "TrainingError": "errors:TrainingError",
    "UploadError": "errors:UploadError",
    "VIEW_SETS": "images.views:VIEW_SETS",
    "VOTES": "core.voting:VOTES",
    "digits_data": "setup.digits_data",
    "explain": "analysis.explanation:explain",
    "export": "models.export:export",
    "find_exports": "inference.exports:find_exports",
    "find_oof": "blending.oof:find_tables",
    "find_views": "ensemble.tta:find",
    "make_split": "workspace.split:make",
    "mask_data": "setup.mask_data",
    "overlay": "analysis.pages.explanation:overlay",
    "read_export": "runtime.graphs.onnx_file:read",
    "read_exports": "inference.exports:read_exports",
    "read_oof": "blending.oof:read_members",
    "read_table": "core.prediction_files:read_table",
    "run_ensemble": "ensemble.run:run_ensemble",
    "score_members": "analysis.scores:score",
    "submit": "submissions.submission:submit",
    "survey": "analysis.data_survey:survey",
    "views_table": "ensemble.view_selection:table",
    "vote": "core.voting:vote",
    "with_evidence": "ensemble.run:with_evidence",
    "write_csv": "base.text.csv_text:write",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604 - names are resolved by __getattr__

if TYPE_CHECKING:
    from toolkit.analysis import scores
    from toolkit.analysis.data_survey import survey as survey
    from toolkit.analysis.explanation import explain as explain
    from toolkit.analysis.pages.explanation import overlay as overlay
    from toolkit.base.text import csv_text
    from toolkit.blending import oof
    from toolkit.blending.combination import Combination as Combination
    from toolkit.core.cards import Card as Card
    from toolkit.core.cards import Output as Output
    from toolkit.core.cards import Preprocess as Preprocess
    from toolkit.core.metrics import METRICS as METRICS
    from toolkit.core.metrics import Metric as Metric
    from toolkit.core.prediction_files import read_table as read_table
    from toolkit.core.predictions import Predictions as Predictions
    from toolkit.core.voting import VOTES as VOTES
    from toolkit.core.voting import vote as vote
    from toolkit.ensemble import tta, view_selection
    from toolkit.ensemble.run import run_ensemble as run_ensemble
    from toolkit.ensemble.run import with_evidence as with_evidence
    from toolkit.errors import AlignmentError as AlignmentError
    from toolkit.errors import CardError as CardError
    from toolkit.errors import CompetitionError as CompetitionError
    from toolkit.errors import DataError as DataError
    from toolkit.errors import DeviceError as DeviceError
    from toolkit.errors import ImageError as ImageError
    from toolkit.errors import ModelError as ModelError
    from toolkit.errors import ParityError as ParityError
    from toolkit.errors import SplitError as SplitError
    from toolkit.errors import StoreError as StoreError
    from toolkit.errors import SubmissionError as SubmissionError
    from toolkit.errors import ToolkitError as ToolkitError
    from toolkit.errors import TrainingError as TrainingError
    from toolkit.errors import UploadError as UploadError
    from toolkit.images.views import VIEW_SETS as VIEW_SETS
    from toolkit.inference.execution import Execution as Execution
    from toolkit.inference.exports import find_exports as find_exports
    from toolkit.inference.exports import read_exports as read_exports
    from toolkit.models.export import export as export
    from toolkit.runtime.graphs import onnx_file
    from toolkit.runtime.session import FakeSession as FakeSession
    from toolkit.runtime.session import Session as Session
    from toolkit.setup import digits_data as digits_data
    from toolkit.setup import mask_data as mask_data
    from toolkit.submissions.submission import submit as submit
    from toolkit.workspace import split
    from toolkit.workspace.competition import Competition as Competition
    from toolkit.workspace.split import Split as Split

    find_oof = oof.find_tables
    find_views = tta.find
    make_split = split.make
    read_export = onnx_file.read
    read_oof = oof.read_members
    score_members = scores.score
    views_table = view_selection.table
    write_csv = csv_text.write


def __getattr__(name: str) -> Any:
    return moved.public_name(__name__, name, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
