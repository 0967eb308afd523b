"""Which of our metrics does a table show? The columns that several tables share, and the paper's beside them."""

from __future__ import annotations

from orchestrator.experiment import Column, PaperColumn
from pipelines.configs import RunConfig
from pipelines.evaluate import frechet_name
from pipelines.features import InceptionConfig
from pipelines.own_classifier import OwnClassifierConfig

NLL = Column(metric="nll_bpd", label="NLL bits/dim", format=".3f", best="min", error="nll_bpd_se", count="nll_images",
             paper="nll_bpd")  # fmt: skip
FID = Column(metric="fid", label="FID", format=".2f", best="min", error="fid_se", count="fd_samples",
             paper="fid")  # fmt: skip
FD = Column(metric="fd", label="Frechet distance", format=".2f", best="min", error="fd_se", count="fd_samples",
            paper="fid")  # fmt: skip
SFID = Column(metric="sfid", label="sFID", format=".2f", best="min", error="sfid_se", paper="sfid")
IS = Column(metric="is", label="IS", format=".2f", best="max", error="is_se", paper="is")
CLASSIFIER_SCORE = Column(
    metric="classifier_score", label="Classifier score", format=".2f", best="max", error="classifier_score_se"
)
KID = Column(metric="kid", label="KID", format=".4f", best="min", error="kid_se", count="fd_samples")
PRECISION = Column(
    metric="precision", label="Precision", format=".3f", best="max", error="precision_se", paper="precision"
)
RECALL = Column(metric="recall", label="Recall", format=".3f", best="max", error="recall_se", paper="recall")

PAPER_NLL = PaperColumn(key="nll_bpd", label="paper NLL", format=".2f")
PAPER_FID = PaperColumn(key="fid", label="paper FID", format=".2f")
PAPER_SFID = PaperColumn(key="sfid", label="paper sFID", format=".2f")
PAPER_IS = PaperColumn(key="is", label="paper IS", format=".2f")
PAPER_PRECISION = PaperColumn(key="precision", label="paper P", format=".2f")
PAPER_RECALL = PaperColumn(key="recall", label="paper R", format=".2f")


def frechet(base: RunConfig) -> Column:
    """FID where Inception sees the images; over another network the distance has a name of its own."""
    return {"fid": FID, "fd": FD}[frechet_name(base.features)]


def quality(base: RunConfig) -> tuple[Column, ...]:
    """FID, sFID, IS, precision and recall, as ADM's tables; without Inception, what stands for the first three."""
    if isinstance(base.features, InceptionConfig):
        return (FID, SFID, IS, PRECISION, RECALL)
    scores = (CLASSIFIER_SCORE,) if isinstance(base.features, OwnClassifierConfig) else ()
    return (FD, KID, *scores, PRECISION, RECALL)
