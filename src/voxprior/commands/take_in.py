"""`voxprior import`: another project's checkpoint as an encoder file of ours."""

import json
from pathlib import Path

from voxprior.errors import Refusal


def run(source: str, checkpoint: Path, backbone: str, output: Path, channels: int) -> None:
    """Reads the checkpoint, places its tensors, and says of every other one why it was left.

    `output` may be named as an init (`file:...`); what was dropped stands in its metadata.

    Args:
        source: the project whose layout the checkpoint has, one of `exchange.foreign.READERS`.
        checkpoint: its file; nothing in it is run.
        backbone: a file of config/backbones.
        output: `encoder.safetensors`.
        channels: of the images.

    Raises:
        Refusal: unknown source or backbone, a damaged file, or a tensor that does not fit.
    """
    from voxprior.commands.named import numbers
    from voxprior.configuration import Backbone as Spec
    from voxprior.data.files import sha256_of
    from voxprior.exchange import foreign
    from voxprior.exchange.names import check
    from voxprior.exchange.pickles import read_checkpoint
    from voxprior.nets.backbones import Backbone
    from voxprior.nets.weights import write_weights
    from voxprior.strict import validated

    if source not in foreign.READERS:
        raise Refusal(f"--from {source} is not known: choose from {', '.join(foreign.READERS)}")
    content, file = numbers("backbones", backbone)
    spec = validated(Spec, content, str(file), "correct the backbone's file")
    built = Backbone(backbone, spec.family, spec.sizes.model_dump(exclude_none=True), channels)
    state, rest = read_checkpoint(checkpoint)
    taken = foreign.READERS[source](state, built, checkpoint)
    check(taken, built, checkpoint)
    told = {"format": source, "file": checkpoint.name, "sha256": sha256_of(checkpoint), "dropped": taken.dropped}
    if "citations" in rest:
        told["citations"] = json.loads(json.dumps(rest["citations"], default=str))
    card = {"backbone": backbone, "family": spec.family, "architecture": built.architecture, "channels": channels}
    about = {"card": card, "tensors": list(taken.placed), "source": told}
    write_weights(output, taken.placed, about)
    print(f"{output}: {len(taken.placed)} of {len(state)} tensors of {checkpoint} placed in {backbone}")
    for reason, names in _grouped(taken.dropped).items():
        print(f"  dropped {len(names)}: {reason} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")


def _grouped(dropped: dict[str, str]) -> dict[str, list[str]]:
    """Gathers dropped tensors by reason."""
    grouped: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        grouped.setdefault("a second name of a placed tensor" if reason.startswith("a copy of") else reason, []).append(
            name
        )
    return grouped
