"""What the UNet is to predict: base, config folder and params must mean the same."""

from stages.diffusion.header import read_header
from stages.diffusion.model import Base, Models
from stages.diffusion.zero_terminal_snr import rescaled
from stages.lineage.ancestry import read_lineage
from stages.lineage.noise_schedule import zero_terminal_snr
from stages.training.loss import V_PREDICTION
from stages.training.params import TrainParams


def settle_objective(models: Models, base: Base, params: TrainParams) -> None:
    """See that base and params mean the same objective; then let the noise schedule follow it.

    Raises:
        ValueError: if they do not; the message names who says what.
    """
    config = models.noise_scheduler.config
    metadata = read_header(base.weights).metadata
    says = metadata.get("modelspec.prediction_type")
    # an epoch's file and a merge say it here alone; a release weighed it already
    learnt = set() if says else read_lineage(metadata).predictions()
    stated = {
        str(base.config): config.prediction_type,
        str(base.weights): {"v": V_PREDICTION}.get(says or "", says),
        # a merge with any training for v may predict v
        f"the training that made {base.weights}": (
            V_PREDICTION if V_PREDICTION in learnt else next(iter(learnt), None)
        ),
    }
    for where, prediction_type in stated.items():
        if prediction_type not in (None, params.prediction_type):
            raise ValueError(
                f"prediction_type is {params.prediction_type!r} in params, but {where} says "
                f"{prediction_type!r}; say the same, or start from another base"
            )
    if params.zero_terminal_snr:
        models.noise_scheduler = rescaled(models.noise_scheduler)
    elif config.rescale_betas_zero_snr:
        place = base.weights if zero_terminal_snr(metadata) else base.config
        raise ValueError(
            f"zero_terminal_snr is false in params, but {place} says that its last timestep is "
            "pure noise; set it to true, or start from another base"
        )
