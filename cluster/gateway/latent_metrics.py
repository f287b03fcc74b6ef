"""What approximated attention was measured to cost, as metrics that never change."""

from prometheus_client import CollectorRegistry, Gauge

from twinflow.runtime.calibration.report import QualityRow

_LABELS = ("model_name", "transform", "shards", "transform_id")


def export_loss(registry: CollectorRegistry, model_name: str, row: QualityRow) -> None:
    """Register the loss of a transform; without one, none of these metrics exists.

    Args:
        registry: front doors expose it.
        model_name: value of the label of the same name.
        row: what was measured.
    """
    labels = (model_name, row.transform, str(row.shards), row.id)
    for name, text, value in (
        (
            "twinflow:tpla_delta_nll_per_token",
            "Measured loss of tensor-parallel latent attention, nats per generated token.",
            row.delta_nll_per_token,
        ),
        (
            "twinflow:tpla_delta_nll_per_byte",
            "The same, per byte of text.",
            row.delta_nll_per_byte,
        ),
        (
            "twinflow:tpla_top1_agreement",
            "Share of tokens whose most likely one is the exact model's.",
            row.agreement,
        ),
    ):
        Gauge(name, text, _LABELS, registry=registry).labels(*labels).set(value)
